"""`doctor` says what is here and why it was taken, and exits with 0 only where a recipe would start."""

import importlib.metadata
import io

import pytest
import torch
from rich.console import Console
from support.commands import QUICKSTART, run
from typer.testing import CliRunner

from megatron_fork.cli import commands as cli
from megatron_fork.cli import doctor, guard
from megatron_fork.config import load_config

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is taken without a GPU")


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program leaves with os._exit, which would end the tests: here it raises SystemExit instead."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(guard, "leave", leave)


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["doctor", *words])
    return result.exit_code, result.output


@NO_GPU
def test_the_machine_and_what_is_taken_on_it() -> None:
    code, output = call()
    assert code == 0
    for package in ("torch", "megatron-core", "transformers"):
        assert f"{package}: {importlib.metadata.version(package)}\n" in output
    assert "layers: local  (no GPU is visible)" in output
    assert "attention: sdpa  (no GPU is visible)" in output
    assert "norms, rotations, SwiGLU: torch  (no GPU is visible)" in output
    assert "LM-head kernels: torch  (no GPU is visible; tried)" in output
    assert "LM-head logits: 160 MiB at a time  (by default)" in output
    assert "ranks: 1, gloo" in output
    assert "transformer-engine: " in output and "fused layers" in output


def test_a_recipe_that_would_start() -> None:
    code, output = call(str(QUICKSTART))
    assert code == 0
    # Per layer: query and output 2 x 128 x 128, key and value 2 x 128 x 64, MLP 3 x 128 x 512, norms 2 x 128 + 2 x 32.
    parameters = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 512 + 2 * 128 + 2 * 32) + 135 * 128 + 128
    assert f"{parameters:,} parameters" in output
    assert "longest sequence: 5 + 46 = 51 tokens" in output
    assert "a step: 16 prompts x 16 = 256 responses  (2 updates)" in output
    assert "an update: 128 responses, 128 per data rank" in output


def test_ranks_that_are_still_to_be_started_are_no_error() -> None:
    code, output = call(str(QUICKSTART), "parallel.tensor=2", "parallel.context=2")
    assert code == 0 and "layout: 1 data ranks of 4  (needs a multiple of 4 ranks; computed for 4)" in output


@NO_GPU
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("compute.backend=transformer_engine", "needs Transformer Engine: no GPU is visible"),
        ("vocab_parallel.kernels=triton", "vocab_parallel.kernels=triton"),
        ("compute.attention=varlen", "compute.attention=varlen cannot run: no GPU is visible"),
        ("compute.attention=flash", "compute.attention=flash cannot run: no GPU is visible"),
        ("compute.elementwise=triton", "compute.elementwise=triton"),
        ("parallel.tensor=3", "num_attention_heads=4"),
        ("rollout.max_response_tokens=124", "max_position_embeddings=128"),
        ("data.source=absent.jsonl", "absent.jsonl"),
        ("selection.ratio=2", "selection.ratio=2"),
    ],
)
def test_what_is_asked_for_in_vain_is_one_line(override: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code, output = call(str(QUICKSTART), override)
    assert code not in (0, None)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0]
    if not override.startswith("selection"):
        assert output.startswith("ok    megatron-fork: "), "what was found before the error is shown"


NEEDED = {
    "rollout.engine=vllm_colocated": "vllm",
    "rewards.kind=math_verify": "math-verify",
    "run.wandb=project": "wandb",
    "run.tensorboard=true": "tensorboard",
    "vocab_parallel.kernels=triton": "triton",
    "compute.backend=transformer_engine": "transformer-engine",
}


@pytest.mark.parametrize("override", NEEDED)
def test_a_package_that_the_recipe_needs_is_marked(override: str) -> None:
    """And to be fixed where it is not installed; a recipe that does not need it loses nothing."""
    plain = {each.name: each for each in doctor._packages(load_config(QUICKSTART, []))}
    found = {each.name: each for each in doctor._packages(load_config(QUICKSTART, [override]))}
    (changed,) = [name for name in found if found[name] != plain[name]] or [NEEDED[override]]
    assert changed == NEEDED[override]
    is_missing = found[changed].found == "not installed"
    assert found[changed].status == ("fix" if is_missing else "ok") and plain[changed].status == "ok"
    assert override.partition("=")[0] in found[changed].note
    assert not is_missing or f"pip install {changed}" in found[changed].note


def test_a_terminal_gets_tables() -> None:
    file = io.StringIO()
    doctor.diagnose(None, Console(file=file, force_terminal=True, width=120))
    assert "│" in file.getvalue() and "optional packages" in file.getvalue()


@pytest.mark.slow
def test_as_a_program() -> None:
    assert run("doctor", str(QUICKSTART))[0] == 0
    code, output = run("doctor", str(QUICKSTART), "parallel.tensor=3")
    assert code == 2 and "Traceback" not in output


def test_servers_that_a_job_starts_need_no_address_yet() -> None:
    """On a login node; a recipe without nodes for them is refused as in a run."""
    words = (str(QUICKSTART), "rollout.engine=vllm", "--no-dry-run", "cluster.gpus_per_node=0")
    code, output = call(*words, "cluster.engine_nodes=2")
    assert code == 0, output
    assert "servers: 2 of 1 GPUs, on 2 nodes" in output and "megatron-fork launch" in output
    code, output = call(*words)
    assert code == 2 and "rollout.engine=vllm with rollout.servers=[]" in output


@NO_GPU
@pytest.mark.parametrize(
    ("overrides", "error", "found", "unknown"),
    [
        (
            ("model.hf_config=null", "model.path=models/Qwen3-0.6B-Base", "sft.steps=0"),
            "model.path=models/Qwen3-0.6B-Base is not a folder",
            ("layout", "before activations", "memory of a rank", "disk speed", "run.folder"),
            ("prompts and tokenizer", "prompts", "one step and a checkpoint"),
        ),
        (
            ("model.hf_config=null", "model.path=nowhere", "sft.steps=0"),
            "model.path=nowhere is not a folder",
            ("layout", "a step", "an update", "disk speed", "run.folder"),
            ("layout and memory", "before activations", "memory", "prompts", "one step and a checkpoint"),
        ),
        (
            ("data.source=absent.jsonl", "rewards.kind=math"),
            "data.source=absent.jsonl",
            ("model", "layout", "before activations", "memory of a rank", "disk space", "disk speed"),
            ("prompts", "one step and a checkpoint"),
        ),
        (
            ("parallel.tensor=3",),
            "num_attention_heads=4",
            ("longest sequence", "responses end at", "a step", "disk space", "disk speed"),
            ("an update", "before activations", "memory", "one step and a checkpoint"),
        ),
    ],
)
def test_what_is_missing_is_not_the_end(
    overrides: tuple[str, ...], error: str, found: tuple[str, ...], unknown: tuple[str, ...]
) -> None:
    """What can be checked without it is, what cannot says why, and the command ends with the error of `train`."""
    code, output = call(str(QUICKSTART), *overrides)
    assert code in (1, 2)
    lines = output.splitlines()
    for name in found:
        assert any(line.startswith(f"ok    {name}: ") for line in lines), (name, output)
    for name in unknown:
        assert any(line.startswith(f"note  {name}: not checked, because `") for line in lines), (name, output)
    told = [line for line in lines if line.startswith("error: ")]
    assert len(told) == 1 and error in told[0]
