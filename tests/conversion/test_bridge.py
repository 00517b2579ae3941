"""Weights go from Hugging Face to Megatron and back bit for bit, and a folder that does not fit is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_qwen3 import FAMILIES, family_config, hugging_face_model, megatron_model, tiny_config
from transformers import AutoModelForCausalLM

from megatron_fork import distributed
from megatron_fork.conversion import PublishedWeights, export_hf, iter_hf_weights, load_hf, load_initial, load_weights
from megatron_fork.conversion.parameters import whole_model_name
from megatron_fork.errors import CheckpointError, ModelError
from megatron_fork.models import ModelConfig as Source
from megatron_fork.models import build_value_chunks


def weights_of(tied: bool) -> dict[str, torch.Tensor]:
    weights = dict(hugging_face_model(tiny_config(tie_word_embeddings=tied)).state_dict())
    if tied:
        weights.pop("lm_head.weight")
    return weights


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fields", [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4, "head_dim": 8}])
def test_round_trip_is_exact(tied: bool, fields: dict) -> None:
    config = tiny_config(tie_word_embeddings=tied, **fields)
    weights = dict(hugging_face_model(config).state_dict())
    if tied:
        weights.pop("lm_head.weight")
    with megatron_model(config, weights) as model:
        found = list(iter_hf_weights(model))
    assert len(found) == len(weights)
    assert_same(dict(found), weights)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_and_written_under_its_published_names(family: str, tied: bool, tmp_path: Path) -> None:
    config = family_config(family, tie_word_embeddings=tied)
    theirs = hugging_face_model(config)
    theirs.save_pretrained(tmp_path / "theirs")
    published = load_file(tmp_path / "theirs" / "model.safetensors")
    with megatron_model(config, None) as model:
        load_hf(model, tmp_path / "theirs")
        from_folder = list(iter_hf_weights(model))
        assert len(from_folder) == len(published)
        assert_same(dict(from_folder), published)
        for parameter in model.parameters():
            parameter.data.zero_()
        load_weights(model, theirs.state_dict())  # experts in memory are fused
        assert_same(dict(iter_hf_weights(model)), published)
        export_hf(model, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert_same(dict(again.state_dict()), dict(theirs.state_dict()))


def test_experts_have_names_of_their_own() -> None:
    fused = dict(hugging_face_model(family_config("qwen3_moe")).state_dict())
    prefix = "model.layers.1.mlp.experts"
    published = PublishedWeights(fused)
    assert len(published) == len(fused) + 2 * (4 * 3 - 2)
    assert torch.equal(published[f"{prefix}.3.gate_proj.weight"], fused[f"{prefix}.gate_up_proj"][3, :24])
    assert torch.equal(published[f"{prefix}.3.up_proj.weight"], fused[f"{prefix}.gate_up_proj"][3, 24:])
    assert torch.equal(published[f"{prefix}.0.down_proj.weight"], fused[f"{prefix}.down_proj"][0])
    published[f"{prefix}.2.up_proj.weight"].fill_(7.0)
    assert (fused[f"{prefix}.gate_up_proj"][2, 24:] == 7.0).all()
    for absent in (f"{prefix}.4.up_proj.weight", f"{prefix}.0.up_proj.bias", "lm_head.bias"):
        assert absent not in published


def test_missing_and_surplus_experts_are_named() -> None:
    config = family_config("qwen3_moe", tie_word_embeddings=False)
    with megatron_model(config, None) as model:
        for experts, error in (
            (2, r"model\.layers\.0\.mlp\.gate\.weight has the shape \[2, 32\], the model's \[4, 32\]"),
            (8, r"model\.layers\.0\.mlp\.gate\.weight has the shape \[8, 32\], the model's \[4, 32\]"),
        ):
            other = hugging_face_model(family_config("qwen3_moe", tie_word_embeddings=False, num_experts=experts))
            with pytest.raises(CheckpointError, match=error):
                load_weights(model, other.state_dict())
        weights = dict(PublishedWeights(hugging_face_model(config).state_dict()))
        del weights["model.layers.1.mlp.experts.3.up_proj.weight"]
        with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight"):
            load_weights(model, weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_initial_weights_are_those_of_hugging_face(family: str) -> None:
    config = family_config(family)
    with megatron_model(config, None) as model:
        load_initial([model], Source(hf_config={"model_type": family}), seed=3)
        found = dict(iter_hf_weights(model))
    torch.manual_seed(3)
    drawn = dict(PublishedWeights(AutoModelForCausalLM.from_config(config).state_dict()))
    drawn.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    assert_same(found, drawn)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_is_loaded_without_a_head(family: str) -> None:
    config = family_config(family, tie_word_embeddings=False)
    weights = dict(PublishedWeights(hugging_face_model(config).state_dict()))
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        critic = build_value_chunks(config, layout.config)
        load_weights(critic, weights)
        assert not critic[0].output_layer.weight.any()
        del weights["lm_head.weight"]
        assert_same(dict(iter_hf_weights(critic)), weights)


def test_names_of_transformer_engine_and_of_later_stages() -> None:
    for name, wanted in {
        "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight": "decoder.layers.5.input_layernorm.weight",
        "decoder.layers.0.mlp.linear_fc1.layer_norm_weight": "decoder.layers.4.pre_mlp_layernorm.weight",
        "decoder.layers.0.mlp.experts.linear_fc2.weight1": (
            "decoder.layers.4.mlp.experts.local_experts.17.linear_fc2.weight"
        ),
        "decoder.layers.11.mlp.experts.local_experts.0.linear_fc1.weight": (
            "decoder.layers.15.mlp.experts.local_experts.16.linear_fc1.weight"
        ),
        "decoder.layers.2.self_attention.linear_qkv.weight": "decoder.layers.6.self_attention.linear_qkv.weight",
        "embedding.word_embeddings.weight": "embedding.word_embeddings.weight",
    }.items():
        assert whole_model_name(name, first_layer=4, first_expert=16) == wanted


def test_bfloat16_round_trip_is_exact() -> None:
    weights = {name: tensor.bfloat16() for name, tensor in weights_of(tied=False).items()}
    with megatron_model(tiny_config(tie_word_embeddings=False), weights, dtype=torch.bfloat16) as model:
        assert_same(dict(iter_hf_weights(model)), weights)


@pytest.mark.parametrize("tied", [True, False])
def test_folders_are_read_and_written(tied: bool, tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=tied)
    theirs = hugging_face_model(config)
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "old.safetensors").write_text("of an earlier export")
    with megatron_model(config, None) as model:
        load_hf(model, tmp_path / "theirs")
        export_hf(model, tmp_path / "ours")
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "ours.partial").exists()
    assert_same(load_file(tmp_path / "ours" / "model.safetensors"), weights_of(tied))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, theirs(tokens).logits)


def test_sharded_folders_are_read(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=False)
    theirs = hugging_face_model(config)
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    with megatron_model(config, None) as model:
        load_hf(model, tmp_path)
        assert_same(dict(iter_hf_weights(model)), weights_of(tied=False))
        files[1].unlink()
        with pytest.raises(CheckpointError, match=r"lacks \d+ tensors that its index names, first ") as caught:
            load_hf(model, tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(weights_of(tied=False)))
def test_a_missing_tensor_is_named(name: str, untied) -> None:
    weights = weights_of(tied=False)
    del weights[name]
    with pytest.raises(CheckpointError, match=f"the checkpoint has no tensor {name}"):
        load_weights(untied, weights)


@pytest.fixture(scope="module")
def untied():
    with megatron_model(tiny_config(tie_word_embeddings=False), None) as model:
        yield model


def test_missing_lm_head_of_an_untied_model_is_named(untied) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor lm_head\.weight"):
        load_weights(untied, weights_of(tied=True))


@pytest.mark.parametrize("name", sorted(weights_of(tied=False)))
@pytest.mark.parametrize("change", [-1, 1, 16])
@pytest.mark.parametrize("dimension", [0, -1])
def test_a_wrong_shape_is_named(name: str, change: int, dimension: int, untied) -> None:
    weights = weights_of(tied=False)
    shape = list(weights[name].shape)
    wanted = list(shape)
    shape[dimension] += change
    weights[name] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as caught:
        load_weights(untied, weights)
    assert caught.value.message == f"the checkpoint's {name} has the shape {shape}, the model's {wanted}"
    assert caught.value.hint


def test_shapes_that_only_add_up_are_refused(untied) -> None:
    weights = weights_of(tied=False)
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")]
    weights[names[0]], weights[names[1]] = torch.zeros(50, 32), torch.zeros(46, 32)
    with pytest.raises(CheckpointError, match=rf"{names[0]} has the shape \[50, 32\], the model's \[48, 32\]"):
        load_weights(untied, weights)


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, untied) -> None:
    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        load_hf(untied, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 7)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_hf(untied, tmp_path)
    weights = weights_of(tied=False)
    save_file(weights, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_hf(untied, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    index = {"weight_map": {"model.embed_tokens.weight": "model.safetensors", "absent": "other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lacks 1 tensors that its index names, first absent"):
        load_hf(untied, tmp_path)


def test_other_modules_are_refused() -> None:
    with pytest.raises(CheckpointError, match="Linear is not a model of this project"):
        list(iter_hf_weights(torch.nn.Linear(2, 2)))
