"""A conversion and its way back give every bit, for every family, as Megatron writes it; what does not fit is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_qwen3 import FAMILIES, family_config, hugging_face_model
from transformers import AutoModelForCausalLM

from megatron_fork import distributed
from megatron_fork.conversion import load_megatron, to_hf, to_megatron, verify
from megatron_fork.conversion.weight_files import Specification, WeightFiles
from megatron_fork.errors import CheckpointError, MegatronForkError, ModelError
from megatron_fork.models import build_model


def hf_folder(folder: Path, family: str = "qwen3", **fields) -> Path:
    hugging_face_model(family_config(family, **fields)).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.6}\n')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}\n')
    return folder


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_of_every_family(family: str, tied: bool, tmp_path: Path) -> None:
    theirs = hf_folder(tmp_path / "theirs", family, tie_word_embeddings=tied)
    written = to_megatron(theirs, tmp_path / "megatron")
    back = to_hf(tmp_path / "megatron", tmp_path / "back", shard_bytes=9000, workers=3)
    assert written.bytes == back.bytes == sum(tensor.nbytes for tensor in weights_in(theirs).values())
    assert_same(weights_in(tmp_path / "back"), weights_in(theirs))
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 2
    for carried in ("generation_config.json", "tokenizer.json"):
        assert (tmp_path / "back" / carried).read_text() == (theirs / carried).read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    assert_same(
        dict(again.state_dict()), dict(hugging_face_model(family_config(family, tie_word_embeddings=tied)).state_dict())
    )
    found = verify(theirs, tmp_path / "megatron")
    assert found.holds and found.different == () and found.config == ()
    assert found.logits is not None and found.logits < 5e-6


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_the_checkpoint_is_as_megatron_writes_it(family: str, tmp_path: Path) -> None:
    from megatron.core import dist_checkpointing
    from torch.distributed.checkpoint import FileSystemReader

    from megatron_fork.distributed.versions import own_writer

    theirs = hf_folder(tmp_path / "theirs", family, tie_word_embeddings=False)
    to_megatron(theirs, tmp_path / "ours")
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        model = build_model(family_config(family, tie_word_embeddings=False), layout.config)
        load_megatron(model, tmp_path / "ours" / "release")
        (tmp_path / "megatron").mkdir()
        dist_checkpointing.save({"model": model.sharded_state_dict()}, str(tmp_path / "megatron"), **own_writer())
    ours, reference = (
        FileSystemReader(folder).read_metadata().state_dict_metadata
        for folder in (tmp_path / "ours" / "release", tmp_path / "megatron")
    )
    # From 0.19 on Megatron also keeps there what is no tensor of the model, beside common.pt.
    reference = {key: entry for key, entry in reference.items() if not key.startswith("common_state/")}
    assert ours.keys() == reference.keys()
    for key, entry in reference.items():
        assert type(ours[key]) is type(entry)
        if hasattr(entry, "size"):
            assert (ours[key].size, ours[key].properties.dtype) == (entry.size, entry.properties.dtype), key
    to_hf(tmp_path / "megatron", tmp_path / "back", model_files=theirs)
    assert_same(weights_in(tmp_path / "back"), weights_in(theirs))


def test_dtype_changes_when_asked(tmp_path: Path) -> None:
    theirs = hf_folder(tmp_path / "theirs")
    to_megatron(theirs, tmp_path / "half", dtype="bf16")
    to_hf(tmp_path / "half", tmp_path / "back")
    narrow = {name: tensor.bfloat16() for name, tensor in weights_in(theirs).items()}
    assert_same(weights_in(tmp_path / "back"), narrow)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))
    to_hf(tmp_path / "half", tmp_path / "wide", dtype="fp32")
    assert_same(weights_in(tmp_path / "wide"), {name: tensor.float() for name, tensor in narrow.items()})
    found = verify(theirs, tmp_path / "half", logits=False)
    assert found.holds and found.compared_as == "float32 as bfloat16"


def test_a_flipped_bit_and_a_changed_config_are_found(tmp_path: Path) -> None:
    theirs = hf_folder(tmp_path / "theirs", tie_word_embeddings=False)
    to_megatron(theirs, tmp_path / "megatron")
    weights = weights_in(theirs)
    name = "model.layers.1.self_attn.k_proj.weight"
    weights[name].view(torch.int32)[3, 5] ^= 1
    save_file(weights, theirs / "model.safetensors", metadata={"format": "pt"})
    found = verify(theirs, tmp_path / "megatron", logits=False)
    assert found.different == (name,) and not found.holds
    config = json.loads((theirs / "config.json").read_text())
    config["rms_norm_eps"] = 0.1
    config["eos_token_id"] = 7
    (theirs / "config.json").write_text(json.dumps(config))
    found = verify(theirs, tmp_path / "megatron", logits=False)
    assert [(each.field, each.weight) for each in found.config] == [
        ("rms_norm_eps", "other results"),
        ("eos_token_id", "other use"),
    ]


def test_logits_that_do_not_fit_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """A model that no machine holds in float32: 8 TiB of embeddings."""
    theirs = hf_folder(tmp_path / "theirs", tie_word_embeddings=True)
    to_megatron(theirs, tmp_path / "megatron")
    config = json.loads((theirs / "config.json").read_text())
    config.update(vocab_size=2**24, hidden_size=2**17)
    (theirs / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"the logits need 8\.\d+ TiB of memory.* are available") as refused:
        verify(theirs, tmp_path / "megatron")
    assert "--no-logits" in str(refused.value.hint)
    with pytest.raises(CheckpointError, match=r"has the shape|in the shape"):
        verify(theirs, tmp_path / "megatron", logits=False)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def drop_tensor(folder: Path) -> None:
    weights = weights_in(folder)
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def add_tensor(folder: Path) -> None:
    save_file(
        {**weights_in(folder), "visual.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def other_head(folder: Path) -> None:
    weights = weights_in(folder)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def narrow_tensor(folder: Path) -> None:
    weights = weights_in(folder)
    weights["model.layers.0.mlp.down_proj.weight"] = weights["model.layers.0.mlp.down_proj.weight"][:, 1:].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def quantise(folder: Path) -> None:
    weights = weights_in(folder)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: truncate(folder / "model.safetensors"), "model.safetensors cannot be read"),
        (drop_tensor, "no tensor model.norm.weight"),
        (add_tensor, "visual.weight, which the model does not have"),
        (other_head, "ties the embeddings, but lm_head.weight differs"),
        (narrow_tensor, r"model.layers.0.mlp.down_proj.weight has the shape \[32, 47\], the model's \[32, 48\]"),
        (quantise, "model.norm.weight has dtype I8"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    ],
)
def test_a_hugging_face_folder_that_does_not_fit_is_refused(
    damage: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    theirs = hf_folder(tmp_path / "theirs", tie_word_embeddings=True)
    damage(theirs)
    with pytest.raises(MegatronForkError, match=named) as caught:
        to_megatron(theirs, tmp_path / "megatron")
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def legacy(folder: Path) -> None:
    shutil.rmtree(folder / "release")
    (folder / "release" / "mp_rank_00").mkdir(parents=True)


def zarr(folder: Path) -> None:
    (folder / "release" / "metadata.json").write_text('{"sharded_backend": "zarr"}')


def remove_shard(folder: Path) -> None:
    max((folder / "release").glob("*.distcp"), key=lambda file: file.stat().st_size).unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (legacy, "legacy format"),
        (zarr, "sharded_backend=zarr"),
        (remove_shard, "cannot be read at"),
        (lambda folder: truncate(max((folder / "release").glob("*.distcp"))), "cannot be read"),
        (lambda folder: (folder / "release" / ".metadata").unlink(), "no .metadata"),
        (lambda folder: (folder / "latest_checkpointed_iteration.txt").write_text("12"), "names 12"),
        (lambda folder: shutil.rmtree(folder / "release" / "hugging_face"), "has no config.json"),
    ],
)
def test_a_megatron_folder_that_does_not_fit_is_refused(
    damage: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    to_megatron(hf_folder(tmp_path / "theirs"), tmp_path / "megatron")
    damage(tmp_path / "megatron")
    with pytest.raises(MegatronForkError, match=named) as caught:
        to_hf(tmp_path / "megatron", tmp_path / "back")
    assert caught.value.hint
    assert not (tmp_path / "back").exists() and not (tmp_path / "back.partial").exists()


def test_another_models_config_is_refused(tmp_path: Path) -> None:
    to_megatron(hf_folder(tmp_path / "theirs", tie_word_embeddings=False), tmp_path / "megatron")
    for fields, named in (
        ({"tie_word_embeddings": True}, "output_layer.weight, which the model does not have"),
        ({"num_hidden_layers": 4, "tie_word_embeddings": False}, "shape"),
        ({"intermediate_size": 64, "tie_word_embeddings": False}, "linear_fc1.weight in the shape"),
    ):
        other = hf_folder(tmp_path / "other", **fields)
        with pytest.raises((CheckpointError, ModelError), match=named):
            to_hf(tmp_path / "megatron", tmp_path / "back", model_files=other)
        with pytest.raises((CheckpointError, ModelError), match=named):
            verify(other, tmp_path / "megatron")
        shutil.rmtree(other)


def test_files_are_complete_or_say_so(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.ones(0, 3)}
    announced = {name: Specification(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with WeightFiles(tmp_path, announced, shard_bytes=10**6) as files:
        for name in ("c", "b", "a"):
            files.write(name, tensors[name])
    assert_same(load_file(tmp_path / "model.safetensors"), tensors)
    (tmp_path / "short").mkdir()
    with (
        pytest.raises(CheckpointError, match="2 tensors were never written, first a"),
        WeightFiles(tmp_path / "short", announced, shard_bytes=10**6) as files,
    ):
        files.write("c", tensors["c"])
    (tmp_path / "wrong").mkdir()
    with (
        pytest.raises(CheckpointError, match=r"a is torch\.float32"),
        WeightFiles(tmp_path / "wrong", announced, shard_bytes=10**6) as files,
    ):
        files.write("a", tensors["a"].T)
