"""A checkpoint of a stranger executes nothing, wherever in it a pickle lies and whatever opens it."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_qwen3 import family_config, hugging_face_model
from torch.distributed.checkpoint.filesystem import FileSystemReader

from megatron_fork import distributed
from megatron_fork.checkpoint import Saved, load_training_state
from megatron_fork.checkpoint.safe_pickle import read_metadata, require_known_classes
from megatron_fork.conversion import load_megatron, to_hf, to_megatron, verify
from megatron_fork.errors import CheckpointError
from megatron_fork.models import build_model
from megatron_fork.policy import OptimizerConfig, Policy, PolicyConfig


class Marks:
    """Unpickling it makes a folder: the harmless stand-in for any program."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Hugging Face folder and the `torch_dist` folder of its model."""
    folder = tmp_path_factory.mktemp("checkpoints")
    hugging_face_model(family_config("qwen3")).save_pretrained(folder / "theirs")
    to_megatron(folder / "theirs", folder / "megatron")
    return folder / "theirs", folder / "megatron"


def in_metadata(folder: Path, marker: Path) -> None:
    """All is as it was, but for one field that nobody looks at."""
    metadata = FileSystemReader(folder).read_metadata()
    metadata.planner_data = Marks(marker)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def instead_of_metadata(folder: Path, marker: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Marks(marker)))


def in_common(folder: Path, marker: Path) -> None:
    torch.save({"args": Marks(marker), "iteration": 0}, folder / "common.pt")


def in_common_of_old(folder: Path, marker: Path) -> None:
    torch.save({"args": Marks(marker)}, folder / "common.pt", _use_new_zipfile_serialization=False)


def in_an_object(folder: Path, marker: Path) -> None:
    """Behind the tensors of a file, where `.metadata` then says that the first object lies."""
    metadata = FileSystemReader(folder).read_metadata()
    index = next(index for index in metadata.storage_data if "_extra_state" in index.fqn)
    place = metadata.storage_data[index]
    stored = io.BytesIO()
    torch.save([Marks(marker)], stored)
    file = folder / place.relative_path
    place.offset, place.length = file.stat().st_size, len(stored.getvalue())
    with file.open("ab") as stream:
        stream.write(stored.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


PLACES = (in_metadata, instead_of_metadata, in_common, in_common_of_old, in_an_object)


def loads_into_a_model(theirs: Path, folder: Path) -> None:
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        load_megatron(build_model(family_config("qwen3"), layout.config), folder)


def resumes(theirs: Path, folder: Path) -> None:
    root = folder.parent / "run"
    shutil.move(folder, root / "policy")
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        policy = Policy(PolicyConfig(), OptimizerConfig(), family_config("qwen3"), layout)
        load_training_state(Saved(root, {}), {"policy": policy})


OPENERS: dict[str, Callable[[Path, Path], object]] = {
    "convert to-hf": lambda theirs, folder: to_hf(folder.parent, folder.parent.parent / "back"),
    "convert verify": lambda theirs, folder: verify(theirs, folder.parent),
    "load into a model": loads_into_a_model,
    "resume": resumes,
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_executed(
    place: Callable[[Path, Path], None], opener: str, written: tuple[Path, Path], tmp_path: Path
) -> None:
    theirs, megatron = written
    shutil.copytree(megatron, tmp_path / "megatron")
    marker = tmp_path / "marker"
    folder = next((tmp_path / "megatron").rglob(".metadata")).parent
    place(folder, marker)
    try:
        OPENERS[opener](theirs, folder)
    except CheckpointError as error:
        assert "\n" not in error.message
        assert error.hint
    else:
        assert opener == "convert to-hf"  # which reads neither common.pt nor objects
        assert place not in (in_metadata, instead_of_metadata)
    assert not marker.exists(), f"{opener} executed what stood {place.__name__}"


def test_what_megatron_writes_is_read(written: tuple[Path, Path]) -> None:
    folder = next(written[1].rglob(".metadata")).parent
    require_known_classes(folder)
    assert read_metadata(folder).state_dict_metadata == FileSystemReader(folder).read_metadata().state_dict_metadata


def test_arguments_of_megatron_lm_are_read(written: tuple[Path, Path], tmp_path: Path) -> None:
    import argparse

    from megatron.core.transformer.enums import AttnBackend

    folder = next(written[1].rglob(".metadata")).parent
    shutil.copytree(folder, tmp_path / "megatron")
    arguments = argparse.Namespace(hidden_size=32, attention_backend=AttnBackend.auto, params_dtype=torch.bfloat16)
    torch.save({"args": arguments, "rng": torch.get_rng_state()}, tmp_path / "megatron" / "common.pt")
    require_known_classes(tmp_path / "megatron")


def test_files_outside_the_folder_are_not_named(written: tuple[Path, Path], tmp_path: Path) -> None:
    folder = next(written[1].rglob(".metadata")).parent
    for elsewhere in ("../other", "/etc/passwd", "a/../../b"):
        metadata = FileSystemReader(folder).read_metadata()
        next(iter(metadata.storage_data.values())).relative_path = elsewhere
        (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointError, match="outside its folder"):
            read_metadata(tmp_path)


CALLABLES = [os.system, os.mkdir, eval, exec, getattr, __import__, print, os._exit, pickle.loads, torch.load, io.open]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(CALLABLES), st.integers(0, 5), st.integers(0, 4))
def test_no_callable_is_named(tmp_path: Path, function: Callable, protocol: int, depth: int) -> None:
    value: Any = function
    for _ in range(depth):
        value = {"deeper": [value]}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(CheckpointError, match="which no checkpoint needs"):
        read_metadata(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_metadata(tmp_path)
    assert "\n" not in caught.value.message


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_damaged_metadata_is_one_line_or_what_it_was(
    written: tuple[Path, Path], tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray((next(written[1].rglob(".metadata"))).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / ".metadata").write_bytes(content)
    try:
        read_metadata(tmp_path)
    except CheckpointError as error:
        assert "\n" not in error.message
