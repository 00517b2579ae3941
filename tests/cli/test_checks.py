"""`doctor` refuses what `train` refuses, in the same words; what it counts is what a rank of this recipe would hold."""

import contextlib
import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.commands import QUICKSTART

from megatron_fork import distributed, planning
from megatron_fork.cli.doctor import diagnose
from megatron_fork.config import load_config
from megatron_fork.errors import ConfigError, MegatronForkError
from megatron_fork.run.checks import check
from megatron_fork.run.console import Display
from megatron_fork.run.context import prepare

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU in vain")
DENSE_32B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
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
# One of each is drawn: what is right by itself, what is wrong by itself, and what goes wrong together.
CHOICES = {
    "parallel.tensor": ["1", "2", "3"],
    "parallel.pipeline": ["1", "2", "4"],
    "parallel.expert": ["1", "2"],
    "rollout.engine": ["embedded", "vllm_colocated", "absent_module:engine"],
    "selection.tokens": ["top", "random", "absent_module:score"],
    "rollout.max_staleness": ["0", "1"],
    "rollout.tail": ["stop"],
    "objective.correction": ["none", "tis"],
    "objective.advantage": ["grpo", "gae"],
    "experts.replay": ["true", "false"],
    "optimizer.distributed": ["true", "false"],
    "critic.optimizer.distributed": ["true"],
    "optimizer.offload": ["0", "0.5"],
    "critic.optimizer.offload": ["0", "0.5"],
    "rewards.kind": ["reach", "math", "absent_module:function"],
    "rewards.workers": ["0", "1"],
    "data.source": ["reach", "arithmetic", "absent.jsonl"],
    "data.template": ["none", "chat", "qwen3", "nothing"],
    "data.held_out": ["8", "100000"],
    "rollout.max_response_tokens": ["46", "124"],
    "rollout.stop_tokens": ["[]", "[5]", "[5000]"],
    "model.hf_config.num_attention_heads": ["4", "6"],
    "model.hf_config.vocab_size": ["135", "100"],
    "compute.backend": ["auto", "transformer_engine"],
    "vocab_parallel.kernels": ["auto", "torch"],
    "compute.recompute": ["none", "full"],
    "compute.recompute_layers": ["1", "2", "7"],
    "sft.steps": ["0", "2"],
}
USUAL = {name: values[0] for name, values in CHOICES.items()}


def outcome(action: object) -> tuple[str, int] | None:
    try:
        action()  # type: ignore[operator]
    except MegatronForkError as error:
        return error.message, error.exit_code
    return None


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changed=st.dictionaries(st.sampled_from(sorted(CHOICES)), st.integers(0, 2), max_size=3),
)
@example(changed={"rewards.kind": 1, "rollout.engine": 2})  # two things that are wrong, each by itself
def test_doctor_and_train_refuse_the_same(
    changed: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    chosen = USUAL | {name: CHOICES[name][place % len(CHOICES[name])] for name, place in changed.items()}
    try:
        config = load_config(
            QUICKSTART, [*(f"{name}={value}" for name, value in chosen.items()), f"run.folder={tmp_path / 'run'}"]
        )
    except MegatronForkError:
        return  # before either

    def train() -> None:
        try:
            with prepare(config, Display(speaks=False)):
                pass
        finally:
            distributed.finalize()
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    doctor = outcome(lambda: diagnose(config, Console(file=StringIO()), ranks=1))
    assert doctor == outcome(train)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["rollout.engine=absent_module:engine", "data.source=absent.jsonl"])
def test_of_two_wrong_things_doctor_tells_the_one_that_train_tells(wrong: str) -> None:
    """Whatever the other is: nothing of a recipe is looked at before the checks."""
    others = [f"{name}={value}" for name, values in CHOICES.items() for value in values[1:]]
    told = set()
    for other in others:
        with contextlib.suppress(MegatronForkError):  # some are refused when they are read, before either
            config = load_config(QUICKSTART, [other, wrong])
            refused = outcome(lambda config=config: check(config, ranks=planning.replica_ranks(config)))
            assert refused == outcome(lambda config=config: diagnose(config, Console(file=StringIO())))
            told.add(refused)
    assert len(told) > 1


def test_layers_that_are_recomputed_together(tmp_path: Path) -> None:
    words = ["compute.recompute=full", "compute.recompute_layers=2"]
    check(load_config(QUICKSTART, words), ranks=1)
    for more in (["compute.recompute_layers=3"], ["parallel.pipeline=2"]):
        with pytest.raises(ConfigError, match=r"compute\.recompute_layers=\d does not divide the \d layers"):
            check(load_config(QUICKSTART, [*words, *more]), ranks=2)


def findings(*overrides: str, ranks: int | None = None) -> str:
    file = StringIO()
    diagnose(load_config(QUICKSTART, list(overrides)), Console(file=file, width=200), ranks=ranks)
    return file.getvalue()


def test_any_number_of_ranks() -> None:
    assert "2 data ranks of 2  (needs a multiple of 2 ranks; computed for 4)" in findings("parallel.tensor=2", ranks=4)
    with pytest.raises(MegatronForkError, match="world size 3 is not a multiple"):
        findings("parallel.tensor=2", ranks=3)


def test_a_32b_model_with_servers_has_no_engine_on_its_ranks() -> None:
    fields = ",".join(f"{name}: {json.dumps(value)}" for name, value in DENSE_32B.items())
    words = [
        f"model.hf_config={{{fields}}}",
        *("parallel.tensor=8", "parallel.pipeline=4", "policy.precision=bf16", "optimizer.distributed=true"),
        "sft.steps=0",
    ]
    with_servers = findings(*words, "rollout.engine=vllm", "rollout.servers=[http://127.0.0.1:9]", ranks=32)
    assert "embedded engine" not in with_servers and "61" not in with_servers.partition("before activations")[2]
    embedded = findings(*words, ranks=32)
    assert "embedded engine: 61.0 GiB per rank" in embedded
    assert "1.91 GiB" not in embedded.partition("before activations")[2]


@NO_GPU
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_nccl_without_a_gpu(engine: str) -> None:
    words = [f"rollout.engine={engine}", "rollout.servers=[http://127.0.0.1:9]", "rollout.sync=nccl"]
    with pytest.raises(ConfigError, match=r"rollout\.sync=nccl needs a GPU"):
        check(load_config(QUICKSTART, words), ranks=1)


@pytest.mark.parametrize("name", ["a/b", "../a", "a\0b", "\ud800", "a\nb", "2026_11_27", "a b"])
def test_any_name_of_a_run_makes_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(QUICKSTART, [f"run.name={name}"])
    try:
        with prepare(config, Display(speaks=False)) as work:
            assert work.folder.path.resolve().parent == tmp_path / "runs"
    finally:
        distributed.finalize()
