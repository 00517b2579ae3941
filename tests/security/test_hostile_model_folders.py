"""A model folder that is not one, in whichever field or byte, is one line of every entrance: no other exception, no memory.

What is taken must be the model: then every entrance takes it.
"""

import copy
import json
import math
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import QUICKSTART
from support.tiny_qwen3 import family_config, hugging_face_model, megatron_model

from megatron_fork.cli.doctor_recipe import Known, recipe_sections
from megatron_fork.config import RunConfig, load_config
from megatron_fork.conversion import load_hf, read_config, resolve_config, to_megatron
from megatron_fork.data.reach import build_tokenizer
from megatron_fork.errors import MegatronForkError
from megatron_fork.models import ModelConfig as Source
from megatron_fork.models import config_from_recipe
from megatron_fork.run.checks import matching_model

MISSING = object()


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


HOSTILE = [None, "some", "3", [1], {"a": 1}, 0, -1, 2**40, 2**70, 1.5, math.nan, math.inf, True, MISSING]
DEEP = nested(60)
ROPES = [
    {},
    {"rope_type": "default"},
    {"rope_type": ["yarn"], "rope_theta": 1e4},
    *({"rope_type": "default", "rope_theta": value} for value in (None, "x", [], -1, 0, math.nan, 2**1100, True)),
    *(
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64, name: value}
        for name in (
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "attention_factor",
            "mscale",
            "truncate",
        )
        for value in (None, "x", [], -1, math.nan, 2**1100)
    ),
    {"rope_type": "llama3", "rope_theta": 1e4},
    {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": [0.5]},
    {"rope_type": "x" * 100_000, "rope_theta": 1e4},
]
# Beside each field by itself: (fields to set, fields that the line must name one of).
TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"layer_types": ["full_attention"] * 3}, "layer_types"),
    ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ({"layer_types": [[], {}]}, "layer_types"),
    ({"layer_types": "full_attention"}, "layer_types"),
    ({"dtype": "bf16"}, "dtype"),
    ({"dtype": "int8"}, "dtype"),
    ({"dtype": "Tensor"}, "dtype"),
    ({"dtype": "float32", "torch_dtype": "bfloat16"}, "dtype"),
    ({"torch_dtype": ["float32"]}, "torch_dtype"),
    ({"num_labels": 2**40}, "num_labels"),
    ({"num_hidden_layers": 2**40, "layer_types": None}, "num_hidden_layers"),
    ({"head_dim": 15}, "head_dim"),
    ({"head_dim": None, "num_attention_heads": 6}, "head"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"pad_token_id": 10**6}, "pad_token_id"),
    ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
    ({"architectures": [["Qwen3ForCausalLM"]]}, "architectures"),
    ({"model_type": "llama"}, "model_type"),
    ({"model_type": "nothing", "auto_map": {"AutoConfig": "code.Config"}}, ""),
    ({"quantization_config": nested(10)}, "quantization_config"),
    ({"id2label": {"x": "y"}}, ""),
    ({"unheard_of": DEEP}, "unheard_of"),
]


def folders(path: Path, family: str) -> Path:
    config = family_config(family, vocab_size=135, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True)
    hugging_face_model(config).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["qwen3", "qwen3_moe"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("qwen3"), "qwen3")


@cache
def recipe_of(folder: Path) -> RunConfig:
    return load_config(QUICKSTART, ["model.hf_config=null", f"model.path={folder}"])


def entrances(folder: Path, out: Path) -> Iterator[Callable[[], object]]:
    config = recipe_of(folder)
    yield lambda: resolve_config(config.model)
    yield lambda: matching_model(config)
    yield lambda: [list(findings) for _, findings in recipe_sections(config, 1, Known())]
    yield lambda: to_megatron(folder, out / "converted")


def line_of(entrance: Callable[[], object]) -> str | None:
    """The line that an entrance ends with; None where it takes the folder."""
    try:
        entrance()
    except MegatronForkError as error:
        assert "\n" not in error.message and len(error.message) < 700, error.message
        assert error.hint, error.message
        return error.message
    return None


def lines_of(folder: Path, out: Path) -> list[str | None]:
    found = [line_of(entrance) for entrance in entrances(folder, out)]
    shutil.rmtree(out / "converted", ignore_errors=True)
    return found


# Fields that experts and dense models treat each in their own way.
EXPERTS_TOO = {"decoder_sparse_step", "mlp_only_layers", "norm_topk_prob", "moe_intermediate_size", "num_hidden_layers"}


def variations(fields: dict[str, Any], varied: Iterable[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """(a hostile config.json, the field that its refusal names)."""
    for name in varied:
        for value in [*HOSTILE, DEEP]:
            changed = copy.deepcopy(fields)
            changed[name] = value
            if value is MISSING:
                del changed[name]
            yield changed, name
    for rope in ROPES:
        yield {**fields, "rope_parameters": rope}, "ro"
    for together, name in TOGETHER:
        yield {**fields, **together}, name


def test_every_field_of_config_json(good: Path, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    fields = json.loads((good / "config.json").read_text())
    assert lines_of(folder, tmp_path) == [None] * 4
    of_experts = {name: value for name, value in fields.items() if "expert" in name or name in EXPERTS_TOO}
    refused = 0
    for changed, name in variations(fields, of_experts if "moe" in good.name else fields):
        (folder / "config.json").write_text(json.dumps(changed))
        line = line_of(lambda: matching_model(recipe_of(folder)))
        case = f"{name}={str(changed.get(name, 'missing'))[:60]}: {line}"
        if line is not None:
            refused += 1
            # A size that some model has is refused by the weights that are not of that model.
            assert name in line or "architecture" in line or line.startswith("the checkpoint"), case
            if refused % 10 == 0:  # one check makes them all: that it is asked everywhere is seen on some
                assert None not in lines_of(folder, tmp_path)[1:], case
    assert refused > 40
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**20, f"{grown} KiB more than before"


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "5", "null", "{", "[" * 100_000, '{"model_type":' * 100_000, "\x00\xff", '{"model_type": 5}', "{}"],
    ids=range(10),
)
def test_what_is_no_config(text: str, qwen3: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen3, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes(text.encode("latin-1"))
    assert None not in lines_of(tmp_path / "model", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"weight_map": []}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": "../b"}}',
        '{"weight_map": {"a": "b", "a": "c"}}',
        '{"weight_map": {"a": "\\u0000"}}',
        '{"weight_map": {"a": "config.json"}}',
        '{"weight_map": {"a": "absent.safetensors"}}',
        json.dumps({"weight_map": {"a": "x" * 5000}}),
    ],
    ids=range(12),
)
def test_what_is_no_index(text: str, qwen3: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen3, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(text)
    found = lines_of(tmp_path / "model", tmp_path)
    assert found[0] is None and None not in found[1:]


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        header(b"[" * 100_000),
        header(b'{"a": 5}'),
        header(b'{"a": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + b"1234",
        header(b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}') + b"1234",
        header(b'{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}') + b"12345678",
    ],
    ids=range(8),
)
def test_what_is_no_weights(content: bytes, qwen3: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen3, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    found = lines_of(tmp_path / "model", tmp_path)
    assert found[0] is None and None not in found[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("value", "kind"), [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")])
def test_weights_that_are_no_numbers_are_named(
    value: float, kind: str, dtype: torch.dtype, qwen3: Path, tmp_path: Path
) -> None:
    shutil.copytree(qwen3, tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    weights = {each: tensor.to(dtype) for each, tensor in load_file(qwen3 / "model.safetensors").items()}
    weights[name].view(-1)[7] = value
    save_file(weights, tmp_path / "model" / "model.safetensors")
    line = line_of(lambda: to_megatron(tmp_path / "model", tmp_path / "converted"))
    assert line == f"the checkpoint's {name} holds {kind}" and not (tmp_path / "converted").exists()
    with megatron_model(read_config(qwen3), None) as model:
        assert line_of(lambda: load_hf(model, tmp_path / "model")) == line
        load_hf(model, qwen3)


def test_every_field_of_a_recipe_s_model() -> None:
    fields = load_config(QUICKSTART).model.hf_config
    assert fields is not None
    for changed, name in variations(fields, fields):
        try:
            line = line_of(lambda changed=changed: resolve_config(Source(hf_config=changed)))
        except RecursionError:
            raise AssertionError(name) from None
        if line is not None:
            assert name.strip("_") in line or "model" in line
    for fields in (
        {1: 2, "model_type": "qwen3"},
        {"model_type": ["qwen3"]},
        {"model_type": "qwen3", "num_labels": 2**40},
    ):
        assert line_of(lambda fields=fields: config_from_recipe(fields)) is not None


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "{}", "[" * 100_000, '{"model": {"type": "BPE"}}', "\x00"], ids=range(7)
)
def test_what_is_no_tokenizer(text: str, qwen3: Path, tmp_path: Path) -> None:
    from megatron_fork.run.checks import matching_prompts

    shutil.copytree(qwen3, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(text)
    config = recipe_of(tmp_path / "model")
    line = line_of(lambda: matching_prompts(config, resolve_config(config.model)))
    assert line is not None and "has no readable tokenizer" in line
