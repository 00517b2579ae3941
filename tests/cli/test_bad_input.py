"""Bad input is one clear line that names the field and the value, a hint with the way out, and an exit code that is not 0."""

import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, environment, run
from support.tiny_qwen3 import family_config, hugging_face_model
from typer.testing import CliRunner

from megatron_fork.cli import commands as cli
from megatron_fork.cli import guard


@pytest.fixture
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program leaves with os._exit, which would end the tests: here it raises SystemExit instead."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(words))
    return result.exit_code, result.output


def model_folder(tmp_path: Path, config: str) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    return folder


CASES = {
    "missing recipe": (["absent.yaml"], ["absent.yaml", "not a file"]),
    "unknown key": ([str(QUICKSTART), "selection.tokns=all"], ["selection.tokns", "did you mean selection.tokens?"]),
    "unknown room": ([str(QUICKSTART), "selektion.tokens=all"], ["selektion", "did you mean selection?"]),
    "wrong type": ([str(QUICKSTART), "train.steps=many"], ["train.steps", "many"]),
    "fraction for a count": ([str(QUICKSTART), "train.steps=1.5"], ["train.steps", "1.5"]),
    "unknown choice": ([str(QUICKSTART), "selection.tokens=best"], ["selection.tokens", "best", "top"]),
    "unknown preset": ([str(QUICKSTART), "selection.preset=verl"], ["selection.preset", "verl", "authors_code"]),
    "ratio": ([str(QUICKSTART), "selection.ratio=1.2"], ["selection.ratio=1.2"]),
    "negative clip": ([str(QUICKSTART), "objective.clip_low=-0.1"], ["objective.clip_low=-0.1"]),
    "value for a mapping": ([str(QUICKSTART), "selection=top"], ["selection=top", "not a mapping"]),
    "not an override": ([str(QUICKSTART), "selection.tokens"], ["selection.tokens", "field=value"]),
    "no model": ([str(QUICKSTART), "model.hf_config=null"], ["has no model", "model.path"]),
    "unknown architecture": ([str(QUICKSTART), "model.hf_config.model_type=qwen9"], ["model_type", "qwen9"]),
    "unsupported architecture": (
        [str(QUICKSTART), "model.hf_config.model_type=gpt2"],
        ["GPT2LMHeadModel", "architecture", "Qwen3ForCausalLM"],
    ),
    "unknown model field": ([str(QUICKSTART), "model.hf_config.hiden_size=8"], ["hiden_size"]),
    "model field of the wrong kind": (
        [str(QUICKSTART), "model.hf_config.num_hidden_layers=two"],
        ["num_hidden_layers", "two"],
    ),
    "small vocabulary": ([str(QUICKSTART), "model.hf_config.vocab_size=100"], ["vocab_size", "135"]),
    "beyond the model's positions": (
        [str(QUICKSTART), "rollout.max_response_tokens=124"],
        ["5 tokens", "max_response_tokens=124", "max_position_embeddings=128", "rope_type yarn", "to 123 or less"],
    ),
    "world size": ([str(QUICKSTART), "parallel.tensor=2"], ["world size 1", "2"]),
    "heads": ([str(QUICKSTART), "parallel.tensor=3"], ["parallel.tensor=3", "num_attention_heads=4"]),
    "layers": ([str(QUICKSTART), "parallel.pipeline=4"], ["parallel.pipeline=4", "num_hidden_layers=2"]),
    "ranks that are not there": ([str(QUICKSTART), "parallel.context=2"], ["world size 1", "1 x 1 x 2"]),
    "nothing to interleave": ([str(QUICKSTART), "parallel.virtual_pipeline=2"], ["parallel.pipeline=1"]),
    "experts of a dense model": ([str(QUICKSTART), "parallel.expert=2"], ["parallel.expert=2", "no experts"]),
    "held out all": ([str(QUICKSTART), "data.held_out=100000"], ["data.held_out=100000", "none to train on"]),
    "missing prompts": ([str(QUICKSTART), "data.source=absent.jsonl"], ["absent.jsonl"]),
    "missing model folder": ([str(QUICKSTART), "model.hf_config=null", "model.path=/absent"], ["model.path=/absent"]),
    "unknown verifier": ([str(QUICKSTART), "rewards.kind=guess"], ["rewards.kind", "guess", "reach"]),
    "mini-batch": ([str(QUICKSTART), "train.prompts_per_mini_batch=99"], ["prompts_per_mini_batch=99"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(name: str, stays: None, tmp_path: Path) -> None:
    words, expected = CASES[name]
    code, output = call("train", *words, f"run.folder={tmp_path / 'run'}")
    assert code not in (0, None)
    assert output.startswith("error: "), output
    assert len(output.splitlines()) == 2, output
    for part in expected:
        assert part in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("response", "rope", "fits"),
    [(123, None, True), (124, None, False), (251, 2.0, True), (252, 2.0, False)],
)
def test_yarn_makes_room(response: int, rope: float | None, fits: bool) -> None:
    """The way out that the message names is one: YaRN over 128 positions has room for twice as many."""
    from megatron_fork.config import load_config
    from megatron_fork.conversion import resolve_config
    from megatron_fork.errors import ModelError
    from megatron_fork.run.checks import matching_prompts

    config = load_config(QUICKSTART, [f"rollout.max_response_tokens={response}"])
    if rope:
        assert config.model.hf_config is not None
        config.model.hf_config["rope_parameters"] = {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": rope,
            "original_max_position_embeddings": 128,
        }
    with nullcontext() if fits else pytest.raises(ModelError, match="max_position_embeddings"):
        matching_prompts(config, resolve_config(config.model))


def test_unreadable_recipe(stays: None, tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text("seed: 1\n  model: [\n")
    code, output = call("train", str(recipe))
    assert code == 2 and "broken.yaml" in output and "line" in output and len(output.splitlines()) == 2


def test_recipe_that_extends_itself(stays: None, tmp_path: Path) -> None:
    recipe = tmp_path / "circle.yaml"
    recipe.write_text("base: circle.yaml\n")
    code, output = call("train", str(recipe))
    assert code == 2 and "extends itself" in output


def test_model_folder_without_config(stays: None, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, output = call("train", str(QUICKSTART), "model.hf_config=null", f"model.path={tmp_path / 'empty'}")
    assert code == 1 and "has no config.json" in output and len(output.splitlines()) == 2


def test_empty_prompt_set(stays: None, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    folder = tmp_path / "model"
    from megatron_fork.data.reach import build_tokenizer

    hugging_face_model(family_config("qwen3", vocab_size=135)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    words = [
        "model.hf_config=null",
        f"model.path={folder}",
        f"data.source={tmp_path / 'none.jsonl'}",
        "rewards.kind=math",
    ]
    code, output = call("train", str(QUICKSTART), *words)
    assert code == 1 and "none.jsonl has no rows" in output and len(output.splitlines()) == 2


@pytest.mark.slow
def test_traceback_only_on_request() -> None:
    code, output = run("train", str(QUICKSTART), "selection.ratio=2")
    assert code == 2 and "Traceback" not in output
    code, output = run("train", str(QUICKSTART), "selection.ratio=2", "--debug")
    assert code == 2 and "Traceback" in output


@pytest.mark.slow
def test_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        result = subprocess.run(
            [sys.executable, "-m", "megatron_fork", "train", str(QUICKSTART)],
            env={**environment(), **ranks},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert result.returncode == 2
    assert f"127.0.0.1:{port}" in result.stderr and "MASTER_PORT" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_full_disk(tmp_path: Path) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    code, output = run("train", str(QUICKSTART), *TINY, f"run.folder={folder}")
    assert code == 1
    assert f"{folder / 'metrics.jsonl'} cannot be written: No space left on device" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_run_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, output = run("train", str(QUICKSTART), *TINY, f"run.folder={tmp_path / 'file' / 'run'}")
    assert code == 1 and "cannot be written" in output and "Traceback" not in output


@pytest.mark.slow
def test_disk_fills_up_during_a_checkpoint(tmp_path: Path) -> None:
    """A real disk of 7 MiB: the warm start fits, the first checkpoint does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("making a small disk needs the right to mount")
    try:
        code, output = run("train", str(QUICKSTART), *TINY, f"run.folder={disk / 'run'}")
        assert code == 1
        assert "step-000004 cannot be written" in output and "resumes from the previous checkpoint" in output
        assert "Traceback" not in output
        assert not (disk / "run" / "checkpoints" / "LATEST").exists()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["train", LONG],
        ["doctor", LONG],
        ["analyze", LONG],
        ["convert", "to-megatron", LONG, "out"],
        ["convert", "to-hf", LONG, "out"],
        ["convert", "verify", LONG, LONG],
        ["data", "dedupe", LONG, "out"],
        ["data", "decontaminate", LONG, "out", "--against", LONG],
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_a_name_that_the_system_refuses_is_one_line_in_every_command(words: list[str], stays: None) -> None:
    code, output = call(*words)
    assert code in (1, 2)
    told = output.strip().splitlines()
    assert len(told) == 2 and told[0].startswith("error: ") and "xxx" in told[0], output


def test_an_error_of_no_file_is_a_defect(stays: None) -> None:
    def work() -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError):
        guard.guarded(work, debug=False)


NUMBERS = {
    ("plan", "r.yaml"): ("--gpus", "--gpu-memory", "--nodes", "--response"),
    ("launch", "r.yaml"): ("--nodes",),
    ("doctor",): ("--ranks", "--patience"),
    ("convert", "to-hf", "a", "b"): ("--shard-gb", "--workers"),
    ("convert", "to-megatron", "a", "b"): ("--workers",),
    ("convert", "verify", "a", "b"): ("--workers",),
    ("data", "decontaminate", "a", "b", "--against=c"): ("--ngram",),
}
COMMANDS = [["train"], ["sft"], ["analyze"], ["plan"], ["launch"], ["doctor"], ["convert", "to-hf"], ["data", "dedupe"]]


def refused(*words: str) -> tuple[str, str]:
    """The line and the hint that a call ends with."""
    code, said = call(*words)
    lines = said.splitlines()
    assert code == 2 and len(lines) == 2, said
    assert lines[0].startswith("error: ") and lines[1].startswith("  ") and said.isascii(), said
    return lines[0].removeprefix("error: "), lines[1].strip()


@pytest.mark.parametrize("value", ["many", "0.00001", "-1", "nan", "inf", "1e400"])
def test_a_number_that_an_option_cannot_have_is_named(value: str, stays: None) -> None:
    for words, options in NUMBERS.items():
        for option in options:
            said, _ = refused(*words, f"{option}={value}")
            assert option in said and value in said.replace(f"{option} ", f"{option}=")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_words_that_a_command_does_not_take(words: list[str]) -> None:
    assert "--no-such-option" in refused(*words, "r", "--no-such-option=3")[0]
    said, hint = refused(*words, "r", "--debugg")
    assert "--debugg" in said and "--debug" in hint and f"{words[-1]} --help" in hint
    if words not in (["doctor"], ["analyze"]):  # one needs none, the other is a group and shows its commands
        said, hint = refused(*words)
        assert said.startswith("missing argument") and f"{words[-1]} --help" in hint


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["planx"], "no such command 'planx'", "Did you mean 'plan'?"),
        (["convert", "to-nothing"], "no such command 'to-nothing'", "convert --help"),
        (["--versoin"], "no such option: --versoin", "did you mean --version?"),
        (["convert", "to-hf", "a", "b", "c"], "got unexpected extra argument(s) (c)", "to-hf --help"),
        (["data", "dedupe", "a", "b", "--conflicts=some"], "--conflicts=some is not one of 'drop', 'first'", "--help"),
        (["launch", "r.yaml", "--nodes"], "option '--nodes' requires an argument", "--help"),
        (["plan", "r.yaml", "--json=3"], "option '--json' does not take a value", "--help"),
        (["plan", "r.yaml", "--gpu-memory", "0.001"], "--gpu-memory=0.001 is not at least 1", "plan --help"),
    ],
    ids=str,
)
def test_a_command_line_that_cannot_be_read(words: list[str], said: str, hint: str) -> None:
    found = refused(*words)
    assert found[0] == said and hint in found[1]


def test_a_call_without_words_is_answered_with_the_help() -> None:
    for words in ([], ["convert"], ["data"]):
        code, said = call(*words)
        assert code == 2 and "Usage" in said and "error" not in said
