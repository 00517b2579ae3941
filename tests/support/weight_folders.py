"""Folders of safetensors for tests: written, read, and loaded through every entrance that the package has."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_fork import distributed
from megatron_fork.conversion import (
    iter_hf_weights,
    load_hf,
    load_initial,
    read_config,
    to_hf,
    to_megatron,
)
from megatron_fork.models import ModelConfig as Source
from megatron_fork.models import build_value_chunks
from support.tiny_qwen3 import family_config, hugging_face_model, megatron_model

INDEX = "model.safetensors.index.json"
Weights = dict[str, torch.Tensor]


def save(weights: Weights, file: Path) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, file, metadata={"format": "pt"})


def model_folder(folder: Path, family: str = "qwen3", **fields) -> Path:
    hugging_face_model(family_config(family, **fields)).save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def loaded(folder: Path) -> Weights:
    with megatron_model(read_config(folder), None) as model:
        load_hf(model, folder)
        return dict(iter_hf_weights(model))


def initial(folder: Path) -> Weights:
    with megatron_model(read_config(folder), None) as model:
        load_initial([model], Source(path=str(folder)), seed=0)
        return dict(iter_hf_weights(model))


def of_critic(folder: Path) -> Weights:
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        critic = build_value_chunks(read_config(folder), layout.config)
        load_hf(critic, folder)
        return dict(iter_hf_weights(critic))


def converted(folder: Path) -> Weights:
    out = folder.with_name(folder.name + "-converted")
    to_megatron(folder, out / "megatron")
    to_hf(out / "megatron", out / "back")
    found = weights_of(out / "back")
    shutil.rmtree(out)
    return found


LOADERS = {"load_hf": loaded, "load_initial": initial, "critic": of_critic, "convert": converted}


def noise(weights: Weights, generator: torch.Generator) -> Weights:
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
