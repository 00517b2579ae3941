"""What is loaded is what `weight_map` names, whatever lies beside it; a folder that is not its config's model is refused.

Both at every entrance that reads weights, and by the same check.
"""

import json
import os
import random
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.weight_folders import (
    INDEX,
    LOADERS,
    Weights,
    loaded,
    model_folder,
    noise,
    save,
    weights_of,
)

from megatron_fork.config import RunConfig
from megatron_fork.conversion import (
    check_folder,
    read_config,
    to_megatron,
    verify,
)
from megatron_fork.conversion.weight_folder import WeightFolder
from megatron_fork.errors import CheckpointError, MegatronForkError
from megatron_fork.models import ModelConfig as Source
from megatron_fork.run.checks import matching_model


def scattered(folder: Path, seed: int) -> Weights:
    """Deal the weights of a folder out to shards at random, and strew others about them; what the index names."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    weights = weights_of(folder)
    (folder / "model.safetensors").unlink()
    names = [f"{draw.choice('amz')}-{number}.safetensors" for number in range(draw.randint(1, 4))]
    file_of = {name: draw.choice(names) for name in weights}
    for file in set(file_of.values()):
        own = {name: tensor for name, tensor in weights.items() if file_of[name] == file}
        # An index may leave tensors of a file out: an earlier value of another shard's is not what it names.
        strays = {name: tensor for name, tensor in noise(weights, generator).items() if draw.random() < 0.3}
        save({**strays, **own}, folder / file)
    for stale in ("consolidated.safetensors", "adapter_model.safetensors", "0-backup.safetensors", "zz.safetensors"):
        kept = {name: tensor for name, tensor in noise(weights, generator).items() if draw.random() < 0.7}
        save({**kept, "of.another.model": torch.ones(2)}, folder / stale)
    (folder / "a-cut.safetensors").write_bytes(b"\x09")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return weights


@pytest.mark.parametrize("seed", range(4))
def test_every_entrance_loads_what_the_index_names(seed: int, tmp_path: Path) -> None:
    folder = model_folder(
        tmp_path / "model", ["qwen3", "qwen3_moe", "qwen2", "llama"][seed], tie_word_embeddings=seed % 2 == 1
    )
    wanted = scattered(folder, seed)
    assert check_folder(folder, read_config(folder)).names == wanted.keys()
    for name, load in LOADERS.items():
        found = load(folder)
        assert found.keys() == wanted.keys() - ({"lm_head.weight"} if name == "critic" else set()), name
        for tensor in found:
            assert torch.equal(found[tensor], wanted[tensor]), (name, tensor)
    matching_model(RunConfig(model=Source(path=str(folder))))
    to_megatron(folder, tmp_path / "megatron")
    assert verify(folder, tmp_path / "megatron", logits=False).holds


def test_without_an_index_the_single_file_is_read_alone(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    wanted = weights_of(folder)
    for stale in ("consolidated.safetensors", "model-backup.safetensors", "z.safetensors"):
        save(noise(wanted, torch.Generator().manual_seed(1)), folder / stale)
    for load in LOADERS.values():
        found = load(folder)
        assert all(torch.equal(found[name], wanted[name]) for name in found)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(wanted, "model.safetensors")}))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded(folder).items())


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1 << 20)}, tmp_path / "model.safetensors")
    with closing(WeightFolder(tmp_path)) as folder:
        os.truncate(tmp_path / "model.safetensors", 4096)
        with pytest.raises(CheckpointError, match="a ends before its last byte"):
            folder["a"]


def test_a_fault_of_the_reader_does_not_pass_its_own_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof that read as the conversion did would find the same wrong tensors on both sides."""
    folder, other = model_folder(tmp_path / "model"), tmp_path / "other"
    other.mkdir()
    save(noise(weights_of(folder), torch.Generator().manual_seed(1)), other / "model.safetensors")
    wrong, right = WeightFolder(other), WeightFolder.__getitem__
    monkeypatch.setattr(WeightFolder, "__getitem__", lambda _, name: right(wrong, name))
    to_megatron(folder, tmp_path / "megatron")
    found = verify(folder, tmp_path / "megatron", logits=False)
    assert not found.holds and set(found.different) == set(weights_of(folder))


def test_a_fault_of_the_readers_names_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "model")
    to_megatron(folder, tmp_path / "megatron")
    weights = weights_of(folder)
    save({**weights, "model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, folder / "model.safetensors")
    names = list(weights)
    monkeypatch.setattr(WeightFolder, "__iter__", lambda _: iter(names))
    with pytest.raises(MegatronForkError, match=r"two readers find different tensors, first .*q_proj\.bias"):
        verify(folder, tmp_path / "megatron", logits=False)
