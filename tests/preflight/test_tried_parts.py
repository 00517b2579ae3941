"""Every part that `doctor` tries has its line: `ok` where a run would go on, `fix` where it would not; nothing stays behind."""

import fcntl
import json
from pathlib import Path

import pytest
import torch
from support.commands import QUICKSTART, start
from support.server_faults import closes
from support.stand_in_engine import StandIn
from typer.testing import CliRunner

from megatron_fork import checkpoint
from megatron_fork.cli import commands as cli
from megatron_fork.cli import guard
from megatron_fork.config import load_config, to_yaml
from megatron_fork.errors import MegatronForkError
from megatron_fork.preflight import disk, memory
from megatron_fork.run import Display, prepare

LARGE = {
    "model_type": "qwen3",
    "vocab_size": 4096,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program leaves with os._exit, which would end the tests: here it raises SystemExit instead."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)


def call(folder: Path, *words: str) -> tuple[int, dict[str, str]]:
    """The exit code, and the lines after the status by the name before the colon; nothing may stay in the folder."""
    before = sorted(folder.rglob("*"))
    words = (str(QUICKSTART), f"run.folder={folder / 'run'}", *words)
    result = CliRunner().invoke(cli.app, ["doctor", *words])
    assert sorted(folder.rglob("*")) == before
    assert not torch.distributed.is_initialized()
    lines = [line for line in result.output.splitlines() if line[:6] in ("ok    ", "note  ", "fix   ")]
    found = {line[6:].partition(": ")[0]: line for line in lines}
    assert (result.exit_code == 0) == (not any(line.startswith("fix") for line in lines)), result.output
    return result.exit_code, found


def test_all_parts_of_a_recipe_that_would_start(tmp_path: Path) -> None:
    code, found = call(tmp_path)
    assert code == 0
    for name in (
        "first prompt",
        "decoded again",
        "memory of a rank",
        "disk space",
        "disk speed",
        "one step",
        "embedded",
    ):
        assert found[name].startswith("ok"), found[name]
    assert "all finite" in found["one step"] and "the same bit for bit" in found["checkpoint"]
    assert found["round trip"].startswith("note") and "alone" in found["round trip"]
    assert "0 to fix" in found["summary"]


@pytest.mark.parametrize(
    "words",
    [
        ["objective.advantage=gae", "objective.kl_coef=0.01"],
        ["policy.precision=bf16", "rollout.mismatch_limit=.inf", "optimizer.distributed=true"],
        ["objective.correction=sequence", "objective.loss=gspo", "selection.tokens=random"],
        ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"],
        [
            "experts.replay=true",
            *("model.hf_config.model_type=qwen3_moe", "model.hf_config.num_experts=4"),
            *("model.hf_config.num_experts_per_tok=2", "model.hf_config.moe_intermediate_size=64"),
        ],
    ],
    ids=lambda words: words[0],
)
def test_other_recipes_are_tried_with_their_own_settings(words: list[str], tmp_path: Path) -> None:
    code, found = call(tmp_path, *words)
    assert code == 0, [line for line in found.values() if not line.startswith("ok")]
    assert "critic" not in words[0] or "critic" in found["one step"]


def test_without_a_dry_run_nothing_is_computed(tmp_path: Path) -> None:
    code, found = call(tmp_path, "--no-dry-run")
    assert code == 0 and "one step" not in found and "disk space" in found


def test_a_large_model_is_tried_small_and_refused_for_memory_and_disk(tmp_path: Path) -> None:
    code, found = call(tmp_path, f"model.hf_config={json.dumps(LARGE)}", "sft.steps=0", "run.keep_checkpoints=100000")
    assert code == 1
    assert found["memory of a rank"].startswith("fix") and "parallel.tensor" in found["memory of a rank"]
    assert found["disk space"].startswith("fix") and "run.keep_checkpoints" in found["disk space"]
    assert "a small qwen3" in found["networks"] and found["checkpoint"].startswith("ok")


def test_a_gpu_that_the_recipe_names_is_compared(tmp_path: Path) -> None:
    words = [f"model.hf_config={json.dumps(LARGE)}", "sft.steps=0", "parallel.tensor=8", "cluster.gpu_memory=40"]
    config = load_config(QUICKSTART, words)
    (fits, _), (too_much, _) = (list(memory.memory(config, gib * 2.0**30, ranks=8)) for gib in (39, 41))
    assert (fits.status, too_much.status) == ("ok", "fix")
    assert "cluster.gpu_memory=40" in too_much.note and "optimizer.distributed=true" in too_much.note


def test_numbers_that_are_none_are_to_be_fixed(tmp_path: Path) -> None:
    code, found = call(tmp_path, "optimizer.learning_rate=1.0e+30", "optimizer.clip_gradient=0")
    assert code == 1
    assert any("nan" in line or "inf" in line or "not finite" in line for line in found.values()), found


def test_a_checkpoint_with_another_bit_is_to_be_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = checkpoint.load_training_state

    def with_a_bit(saved, networks) -> None:
        load(saved, networks)
        next(networks["policy"].model[0].parameters()).data.view(torch.int32).flatten()[0] ^= 1

    monkeypatch.setattr(checkpoint, "load_training_state", with_a_bit)
    code, found = call(tmp_path)
    line = found["one step and a checkpoint"]
    assert code == 1 and line.startswith("fix") and " tensors of a checkpoint in " in line


def another_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "resolved.yaml").write_text(to_yaml(load_config(QUICKSTART, ["seed=5"])))


def leavings(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize("state", [another_run, leavings, nothing], ids=lambda state: state.__name__)
@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_a_folder_is_refused_where_train_refuses_it(state, overwrite: str, tmp_path: Path) -> None:
    for place in ("of_doctor", "of_train"):
        (tmp_path / place).mkdir()
        state(tmp_path / place / "run")
    words = [f"run.overwrite={overwrite}"]
    code, found = call(tmp_path / "of_doctor", "--no-dry-run", *words)
    refusal = ""
    try:
        with prepare(
            load_config(QUICKSTART, [*words, f"run.folder={tmp_path / 'of_train' / 'run'}"]), Display(speaks=False)
        ):
            pass
    except MegatronForkError as error:
        refusal = error.message.replace("of_train", "of_doctor")
    torch.distributed.destroy_process_group()
    assert (code != 0) == bool(refusal)
    assert not refusal or refusal in found["disk"]


def test_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as lock:
        lock.write("process 1 on elsewhere since noon\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, found = call(tmp_path, "--no-dry-run")
    assert code == 1 and "is in use by process 1 on elsewhere since noon" in found["disk"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_servers_are_asked_and_keep_their_weights(engine: str, tmp_path: Path) -> None:
    good, bad = StandIn(engine), StandIn(engine, fault=closes)
    try:
        words = [f"rollout.engine={engine}", f"rollout.servers=[{good.url}]"]
        code, found = call(tmp_path, "--no-dry-run", *words)
        assert code == 0 and "log-probs -" in found[f"tokens of {good.url}"]
        assert good.label == "default" and "default" in found[f"tokens of {good.url}"]
        words[1] = f"rollout.servers=[{good.url}, {bad.url}]"
        code, found = call(tmp_path, "--no-dry-run", *words)
        assert code == 1 and found[f"tokens of {bad.url}"].startswith("fix")
        assert found[f"tokens of {good.url}"].startswith("ok")
    finally:
        good.close()
        bad.close()


def test_a_server_that_is_not_there_yet_is_worth_a_note(tmp_path: Path) -> None:
    words = ["rollout.engine=vllm", "rollout.servers=[http://127.0.0.1:9]"]
    code, found = call(tmp_path, "--no-dry-run", *words)
    assert code == 0 and found["tokens of http://127.0.0.1:9"].startswith("note")
    code, found = call(tmp_path, "--no-dry-run", "--sync", "--patience=1", *words)
    assert code == 1 and found["weight sync"].startswith("fix") and "http://127.0.0.1:9" in found["weight sync"]


def test_bytes_that_a_run_writes() -> None:
    """Weights and Adam's state for every checkpoint that is kept, and for the one that is being written."""
    config = load_config(QUICKSTART, ["run.keep_checkpoints=3", "run.checkpoint_every=1", "train.steps=50"])
    hf_config = hf_config_of(config)
    written = disk.bytes_written(config, hf_config)
    assert written["of 4 checkpoints"] == 4 * 12 * 509_568
    assert written["of the model"] == 2 * 4 * 509_568
    half = load_config(QUICKSTART, ["policy.precision=bf16", "objective.advantage=gae", "run.checkpoint_every=0"])
    written = disk.bytes_written(half, hf_config)
    assert written["of 1 checkpoints"] == 2 * 14 * 509_568 and written["of the model"] == 2 * 2 * 509_568


def hf_config_of(config):
    from megatron_fork.conversion import resolve_config

    return resolve_config(config.model)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    import os
    import signal
    import time

    program = start("doctor", str(QUICKSTART), f"run.folder={tmp_path / 'run'}")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".megatron-fork-doctor-*/run-0")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(program.pid, signal.SIGINT)
    code, output = program.finish(60)
    assert code == 130 and "Traceback" not in output, output
    assert not list(tmp_path.iterdir())
