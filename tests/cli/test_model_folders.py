"""A model folder that is not one model, or names ends that are no tokens, is refused by every command before it begins."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import QUICKSTART, TINY, run, trace_rows
from support.tiny_qwen3 import family_config, hugging_face_model
from typer.testing import CliRunner

from megatron_fork.cli import commands as cli
from megatron_fork.cli import guard
from megatron_fork.data.reach import build_tokenizer, words

ENDS = [1, *range(10, 40)]


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program leaves with os._exit, which would end the tests: here it raises SystemExit instead."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = family_config("qwen3", vocab_size=135, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0)
    hugging_face_model(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": ENDS}))
    return folder


def call(command: str, folder: Path, *overrides: str) -> tuple[int, str]:
    words = [command, str(QUICKSTART), "model.hf_config=null", f"model.path={folder}", *overrides]
    result = CliRunner().invoke(cli.app, words)
    return result.exit_code, result.output


def backup(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-backup.safetensors")


def head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = -weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors")


def bias(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.bias"] = torch.ones(32)
    save_file(weights, folder / "model.safetensors")


def layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": 1, "layer_types": ["full_attention"]})
    )


def ends(file: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        fields = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**fields, "eos_token_id": value}))

    return change


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (backup, ["neither model.safetensors nor", "model-backup.safetensors is not read"]),
        (head, ["lm_head.weight differs from model.embed_tokens.weight"]),
        (bias, ["a tensor model.layers.1.self_attn.k_proj.bias, which the model does not have"]),
        (layer, ["a tensor model.layers.1.", "which the model does not have"]),
        (
            ends("generation_config.json", [1, 135]),
            ["generation_config.json is [1, 135]: 135 is not a token", "of 135"],
        ),
        (ends("config.json", -1), ["config.json is -1: -1 is not a token"]),
        (ends("generation_config.json", ["<eos>"]), ["generation_config.json is ['<eos>']: '<eos>' is not a token"]),
        (lambda folder: (folder / "generation_config.json").write_text("{"), ["generation_config.json cannot be read"]),
        (lambda folder: (folder / "generation_config.json").write_text("[1]"), ["holds a list, not fields"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "sft", "doctor"])
def test_what_does_not_fit_is_one_line_of_every_command(
    command: str, damage: Callable[[Path], object], named: list[str], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    damage(folder)
    code, output = call(command, folder, f"run.folder={tmp_path / 'run'}")
    assert code not in (0, None)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(part in errors[0] for part in named), output
    assert command == "doctor" or len(output.splitlines()) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "sft", "doctor"])
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rollout.stop_tokens=[7,999]"], "rollout.stop_tokens is [7, 999]: 999 is not a token of a vocabulary of 135"),
        (["rollout.max_staleness=1", "rollout.tail=stop"], "rollout.max_staleness=1 with objective.correction=none"),
        (["rollout.samples=1", "rollout.dynamic_sampling=false"], "rollout.samples=1 with objective.advantage=grpo"),
    ],
)
def test_what_a_run_refuses_the_doctor_refuses(
    command: str, overrides: list[str], named: str, model: Path, tmp_path: Path
) -> None:
    code, output = call(command, model, *overrides, f"run.folder={tmp_path / 'run'}")
    assert code not in (0, None) and named in output and not (tmp_path / "run").exists()


def test_the_doctor_says_what_there_is(model: Path) -> None:
    code, output = call("doctor", model, "rollout.stop_tokens=[39,50]")
    assert code == 0, output
    assert "weights: 24 tensors in 1 file, " in output
    shown = ", ".join(f"{token} {words()[token]}" for token in [*ENDS, 50])
    assert f"responses end at: {shown}\n" in output


def test_the_default_of_a_config_class_is_no_end() -> None:
    """Llama's is 2, which here is the word "from"; what is written beside the trained weights is the tokenizer's end."""
    from megatron_fork.config import load_config
    from megatron_fork.conversion import resolve_config
    from megatron_fork.run.checks import matching_ends

    config = load_config(QUICKSTART, ["model.hf_config.model_type=llama"])
    assert config.model.hf_config is not None
    del config.model.hf_config["eos_token_id"]
    hf_config = resolve_config(config.model)
    assert matching_ends(config, hf_config, build_tokenizer()) == (1,)
    assert hf_config.eos_token_id == 1


@pytest.mark.slow
def test_a_run_ends_responses_where_the_model_says_and_hands_that_on(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [*TINY, "train.steps=1", "run.trace_trajectories=100", f"run.folder={folder}"]
    code, output = run("train", str(QUICKSTART), "model.hf_config=null", f"model.path={model}", *settings)
    assert code == 0, output
    assert "responses end at 1 <eos>, 10 0, 11 1, " in output
    texts, found = {words()[token] for token in ENDS}, set()
    for trace in trace_rows(folder / "traces" / "step-000001.parquet"):
        *before, last = [text.decode().strip() for text in trace["token_texts"]]
        assert not set(before) & texts
        assert (last in texts) == (trace["finish_reason"] == "stop")
        found |= {last} & texts
    assert len(found) > 1
    code, output = run("convert", "to-hf", str(folder), str(tmp_path / "converted"))
    assert code == 0, output
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    for written in (folder / "model", folder / "warm_start", checkpoint / "hugging_face", tmp_path / "converted"):
        assert (written / "generation_config.json").read_bytes() == (model / "generation_config.json").read_bytes()
