"""What is wrong with a model's folder is one line that names the file, before anything is computed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import QUICKSTART
from support.tiny_qwen3 import family_config, hugging_face_model

from megatron_fork.config import load_config
from megatron_fork.data.reach import build_tokenizer
from megatron_fork.errors import ConfigError, MegatronForkError
from megatron_fork.run.checks import check


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    hugging_face_model(family_config("qwen3", vocab_size=135, eos_token_id=1)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (["model.safetensors"], "has no *.safetensors"),
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer: none of"),
    ],
)
def test_a_folder_that_lacks_something(gone: list[str], named: str, model: Path) -> None:
    for name in gone:
        (model / name).unlink()
    config = load_config(QUICKSTART, ["model.hf_config=null", f"model.path={model}", "sft.steps=0"])
    with pytest.raises(MegatronForkError) as caught:
        check(config, ranks=1)
    assert f"model.path={model} {named}" in caught.value.message


def fp8(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    weights[f"{name}_scale_inv"] = torch.ones(1)


def gptq(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.gate_proj"
    del weights[f"{name}.weight"]
    weights |= {f"{name}.{part}": torch.zeros(4, 4, dtype=torch.int32) for part in ("qweight", "qzeros", "g_idx")}
    weights[f"{name}.scales"] = torch.zeros(4, dtype=torch.float16)


def bitsandbytes(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    weights[name] = torch.zeros(768, 1, dtype=torch.uint8)
    weights[f"{name}.absmax"] = torch.zeros(24)


@pytest.mark.parametrize("quantise", [fp8, gptq, bitsandbytes], ids=lambda each: each.__name__)
@pytest.mark.parametrize("is_declared", [True, False])
def test_quantised_weights_are_called_so(
    quantise: Callable[[dict[str, torch.Tensor]], None], is_declared: bool, model: Path
) -> None:
    weights = load_file(model / "model.safetensors")
    quantise(weights)
    save_file(weights, model / "model.safetensors")
    if is_declared:
        fields = json.loads((model / "config.json").read_text())
        fields["quantization_config"] = {"quant_method": quantise.__name__, "bits": 4}
        (model / "config.json").write_text(json.dumps(fields))
    with pytest.raises(MegatronForkError, match="quantised") as caught:
        check(load_config(QUICKSTART, ["model.hf_config=null", f"model.path={model}", "sft.steps=0"]), ranks=1)
    assert "quantised by " + quantise.__name__ in caught.value.message or not is_declared
    assert caught.value.hint == "quantised weights are not supported: take the model's bf16 folder"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_hidden_layers": 1}, "layer_types has 2 entries, but num_hidden_layers=1"),
        ({"num_hidden_layers": 3}, "layer_types has 2 entries, but num_hidden_layers=3"),
        ({"dtype": "bf16"}, "dtype=bf16, which is not one of float32, bfloat16"),
        ({"hidden_size": "32"}, "hidden_size=32, which is not a whole number"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps=1e-6, which is not a finite number"),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, "dtype=float32, but torch_dtype=bfloat16"),
    ],
)
def test_an_edited_config_is_one_line(fields: dict[str, object], named: str, model: Path) -> None:
    written = json.loads((model / "config.json").read_text())
    assert written["layer_types"] == ["full_attention"] * 2
    (model / "config.json").write_text(json.dumps(written | fields))
    with pytest.raises(MegatronForkError) as caught:
        check(load_config(QUICKSTART, ["model.hf_config=null", f"model.path={model}", "sft.steps=0"]), ranks=1)
    assert f"{model / 'config.json'}: {named}" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"a": ', b"\xef\xbb\xbf{}", b"\xff\xfe", b"null", b'"text"'])
def test_a_side_file_that_is_none_is_one_line_or_does_no_harm(file: str, content: bytes, model: Path) -> None:
    (model / file).write_bytes(content)
    try:
        check(load_config(QUICKSTART, ["model.hf_config=null", f"model.path={model}", "sft.steps=0"]), ranks=1)
    except MegatronForkError as error:
        assert "\n" not in error.message and str(model) in error.message and error.hint


def test_a_warm_start_without_demonstrations_is_refused(tmp_path: Path, model: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    places = range(3, 12)
    rows.write_text(
        "".join(json.dumps({"prompt": f"from {n} to {n} :", "answer": "1", "how": "done"}) + "\n" for n in places)
    )
    words = ["model.hf_config=null", f"model.path={model}", f"data.source={rows}", "rewards.kind=math", "sft.steps=2"]
    words.append("data.held_out=2")
    with pytest.raises(ConfigError, match=r"sft\.steps=2, but data\.source=.* has no demonstrations") as caught:
        check(load_config(QUICKSTART, words), ranks=1)
    assert "data.columns.solution" in caught.value.hint
    check(load_config(QUICKSTART, [*words, "data.columns.solution=how"]), ranks=1)
    long = " ".join(["done"] * 130)
    rows.write_text(rows.read_text() + json.dumps({"prompt": "from 3 to 4 :", "answer": "1", "how": long}) + "\n")
    with pytest.raises(MegatronForkError, match=r"data\.columns\.solution=how has 1\d\d tokens"):
        check(load_config(QUICKSTART, [*words, "data.columns.solution=how"]), ranks=1)
