"""A folder of weights with a fault is refused by every entrance in the same words, which name the file or the tensor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.weight_folders import (
    INDEX,
    LOADERS,
    Weights,
    initial,
    loaded,
    model_folder,
    noise,
    of_critic,
    save,
    weights_of,
)

from megatron_fork.config import RunConfig
from megatron_fork.conversion import (
    to_megatron,
    verify,
)
from megatron_fork.errors import MegatronForkError
from megatron_fork.models import ModelConfig as Source
from megatron_fork.run.checks import matching_model


def changed(change: Callable[[Weights], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = weights_of(folder)
        change(weights)
        save(weights, folder / "model.safetensors")

    return damage


def configured(**fields: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return damage


def layers(count: int) -> Callable[[Path], None]:
    return configured(num_hidden_layers=count, layer_types=["full_attention"] * count)


def indexed(text: str | Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    """Of a folder of two shards, whose index is `text`, or what `text` makes of its weight_map."""

    def damage(folder: Path) -> None:
        weights = weights_of(folder)
        (folder / "model.safetensors").unlink()
        file_of = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(sorted(weights))}
        for file in set(file_of.values()):
            save({name: weights[name] for name in weights if file_of[name] == file}, folder / file)
        index = text if isinstance(text, str) else json.dumps(text(file_of))
        (folder / INDEX).write_bytes(index.encode("utf-8", "surrogateescape"))

    return damage


def renamed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


def with_a_single_file(folder: Path) -> None:
    weights = weights_of(folder)
    indexed(lambda file_of: {"weight_map": file_of})(folder)
    save(noise(weights, torch.Generator().manual_seed(1)), folder / "model.safetensors")


# Of a folder of the tests' Qwen3 with tied embeddings: what is done to it, and what is said of it.
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "fewer layers in the config": (layers(1), r"a tensor model\.layers\.1\.\S+, which the model"),
    "more layers in the config": (layers(3), r"no tensor model\.layers\.2\.\S+, and 10 more"),
    "a config at odds with itself": (
        configured(num_hidden_layers=1),
        r"config\.json: layer_types has 2 entries, but num_hidden_layers=1",
    ),
    "a config of nothing": (
        lambda folder: (folder / "config.json").write_text("[1]") and None,
        "holds a list, not fields",
    ),
    "another width": (configured(intermediate_size=64), r"has the shape \[48, 32\], the model's \[64, 32\]"),
    "other heads": (configured(num_key_value_heads=4), r"k_proj\.weight has the shape \[32, 32\], the model's"),
    "another head": (changed(lambda w: w.update({HEAD: w[TABLE] + 1})), "lm_head.weight differs from"),
    "a head of another dtype": (changed(lambda w: w.update({HEAD: w[TABLE].bfloat16()})), "lm_head.weight differs"),
    "one bit of the head": (
        changed(lambda w: w.update({HEAD: torch.where(torch.arange(32) == 31, -w[TABLE], w[TABLE])})),
        "lm_head.weight differs",
    ),
    "no head": (configured(tie_word_embeddings=False), r"no tensor lm_head\.weight"),
    "a bias": (
        changed(lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})),
        r"a tensor model\.layers\.0\.self_attn\.q_proj\.bias, which the model does not have",
    ),
    "another architecture": (
        configured(architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
        r"no tensor model\.layers\.0\.self_attn\.k_proj\.bias",
    ),
    "a missing tensor": (changed(lambda w: w.pop(NORM)), rf"no tensor {NORM}"),
    "integers": (changed(lambda w: w.update({NORM: w[NORM].to(torch.int8)})), rf"{NORM} has dtype I8"),
    "fp8": (changed(lambda w: w.update({NORM: w[NORM].to(torch.float8_e4m3fn)})), rf"{NORM} has dtype F8_E4M3"),
    "packed": (changed(lambda w: w.update({"model.q.qweight": torch.ones(2, dtype=torch.int32)})), "dtype I32"),
    "quantised": (configured(quantization_config={"quant_method": "fp8"}), "quantization_config=.*fp8"),
    "weights elsewhere": (configured(transformers_weights="z.safetensors"), r"transformers_weights=z\.safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no \*\.safetensors"),
    "another name": (renamed("z.safetensors"), r"neither model\.safetensors nor .*; z\.safetensors is not read"),
    "an adapter": (renamed("adapter_model.safetensors"), "has an adapter, but no model.safetensors"),
    "a pickle": (renamed("pytorch_model.bin"), r"has pytorch_model\.bin, but no safetensors"),
    "pickled shards": (renamed("pytorch_model.bin.index.json"), r"has pytorch_model\.bin\.index\.json, but no"),
    "a cut file": (
        lambda folder: (
            (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]) and None
        ),
        r"model\.safetensors cannot be read",
    ),
    "no JSON": (indexed('{"weight_map": {"mod'), r"index\.json cannot be read"),
    "no UTF-8": (indexed("\udcff"), r"index\.json cannot be read"),
    "no weight_map": (indexed("{}"), "has no weight_map"),
    "an empty one": (indexed('{"weight_map": {}}'), "has no weight_map"),
    "a list": (indexed("[1]"), "has no weight_map"),
    "a number for a file": (indexed(lambda m: {"weight_map": {**m, NORM: 3}}), rf"gives {NORM} the file 3"),
    "a file above": (indexed(lambda m: {"weight_map": {**m, NORM: "../z.safetensors"}}), "not in its folder"),
    "a file anywhere": (indexed(lambda m: {"weight_map": {**m, NORM: "/z.safetensors"}}), "not in its folder"),
    "a file below": (indexed(lambda m: {"weight_map": {**m, NORM: "a\\z"}}), "not in its folder"),
    "the folder itself": (indexed(lambda m: {"weight_map": {**m, NORM: ".."}}), "not in its folder"),
    "a tensor twice": (indexed('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'), "names a twice"),
    "a missing file": (
        indexed(lambda m: {"weight_map": {**m, NORM: "z.safetensors"}}),
        rf"lacks 1 tensors that its index names, first {NORM}: there is no z\.safetensors",
    ),
    "the wrong file": (
        indexed(lambda m: {"weight_map": {**m, NORM: f"model-{1 - int(m[NORM][6])}.safetensors"}}),
        rf"lacks 1 tensors that its index names, first {NORM}: model-\d\.safetensors does not hold it",
    ),
    "a cut index": (
        indexed(lambda m: {"weight_map": {name: file for name, file in m.items() if name != NORM}}),
        rf"no tensor {NORM}",
    ),
    "a single file beside the index": (with_a_single_file, r"has both model\.safetensors and .*, which names model-0"),
}


def trained(folder: Path) -> None:
    matching_model(RunConfig(model=Source(path=str(folder))))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    model_folder(folder / "model", tie_word_embeddings=True)
    to_megatron(folder / "model", folder / "megatron")
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_every_entrance_refuses_it_in_the_same_words(fault: str, good: Path, tmp_path: Path) -> None:
    damage, named = FAULTS[fault]
    folder = tmp_path / "model"
    shutil.copytree(good / "model", folder)
    damage(folder)
    entrances: dict[str, Callable[[Path], object]] = {
        "train": trained,
        "load_hf": loaded,
        "load_initial": initial,
        "to_megatron": lambda folder: to_megatron(folder, tmp_path / "out"),
    }
    if fault != "no head":  # a critic has its own
        entrances["critic"] = of_critic
    messages = set()
    for name, enter in entrances.items():
        with pytest.raises(MegatronForkError, match=named) as caught:
            enter(folder)
        assert caught.value.hint and "\n" not in caught.value.message, name
        messages.add(caught.value.message.removeprefix("model.path="))  # which a recipe says beside the folder
    assert len(messages) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    with pytest.raises(MegatronForkError):  # or that the Megatron checkpoint is not of that config
        verify(folder, good / "megatron", logits=False)


def test_a_tied_head_that_is_stored_and_buffers_are_taken(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", tie_word_embeddings=True)
    weights = weights_of(folder)
    extra = {HEAD: weights[TABLE], "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save({**weights, **extra}, folder / "model.safetensors")
    for load in LOADERS.values():
        assert load(folder).keys() == weights.keys()
    trained(folder)
    weights[TABLE][3, 4] = float(
        "nan"
    )  # bytes are compared, not numbers: the head is no other one, but no number either
    save({**weights, **extra}, folder / "model.safetensors")
    trained(folder)
    for load in LOADERS.values():
        with pytest.raises(MegatronForkError, match=f"{TABLE} holds NaN"):
            load(folder)
