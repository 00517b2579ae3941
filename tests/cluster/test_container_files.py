"""What a container's field names is an image of its kind, by its first bytes, or is refused by a line that names the field."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.commands import QUICKSTART, run

from megatron_fork.cluster import SlurmConfig, check_images
from megatron_fork.errors import ConfigError

SQUASHFS = b"hsqs" + bytes(92)
SIF = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0" + bytes(64)
KINDS = ("pyxis", "apptainer")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64), kind=st.sampled_from(KINDS))
@example(content=SQUASHFS, kind="pyxis")
@example(content=SQUASHFS, kind="apptainer")
@example(content=SIF, kind="apptainer")
@example(content=SIF, kind="pyxis")
@example(content=SIF[:20], kind="apptainer")
@example(content=b"FROM ubuntu\n", kind="apptainer")
@example(content=b"\x1f\x8b" + bytes(60), kind="pyxis")
def test_a_file_is_taken_by_its_first_bytes(content: bytes, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "image.sif"
    file.write_bytes(content)
    slurm = SlurmConfig(engine_container=str(file), container_kind=kind)  # type: ignore[arg-type]
    if content.startswith(b"hsqs") or (kind == "apptainer" and content[32:].startswith(b"SIF_MAGIC")):
        check_images(slurm)
        return
    with pytest.raises(
        ConfigError, match=r"^cluster\.slurm\.engine_container=.*image\.sif is .*, and no image that"
    ) as told:
        check_images(slurm)
    assert told.value.hint


def test_folders_and_what_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    folder.mkdir()
    for kind in KINDS:
        for place in (folder, Path("/dev/null")):
            with pytest.raises(ConfigError, match="no image that"):
                check_images(SlurmConfig(container=str(place), container_kind=kind))  # type: ignore[arg-type]
        for place in (tmp_path / "none.sqsh", QUICKSTART / "inside"):
            with pytest.raises(ConfigError, match="is not there"):
                check_images(SlurmConfig(container=str(place), container_kind=kind))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="cannot be read: File name too long"):
            check_images(SlurmConfig(container="/" + "x" * 300, container_kind=kind))  # type: ignore[arg-type]
    (folder / ".singularity.d").mkdir()
    check_images(SlurmConfig(container=str(folder), container_kind="apptainer"))
    with pytest.raises(ConfigError, match="is a sandbox, and no image that Pyxis runs") as told:
        check_images(SlurmConfig(container=str(folder)))
    assert told.value.hint == "set cluster.slurm.container_kind=apptainer"


@pytest.mark.parametrize(
    "image", ["docker://nvcr.io#nvidia/pytorch:26.01-py3", "library://me/trainer:1", "nvcr.io#nvidia/pytorch"]
)
def test_addresses_are_the_cluster_s_to_find(image: str) -> None:
    check_images(SlurmConfig(container=image))
    if "://" in image:
        check_images(SlurmConfig(container=image, container_kind="apptainer"))


def test_launch_and_doctor_refuse_it(tmp_path: Path) -> None:
    words = (str(QUICKSTART), f"cluster.slurm.container={tmp_path}", "cluster.slurm.container_kind=apptainer")
    for command in (("launch", "--dry-run"), ("doctor", "--no-dry-run")):
        code, output = run(command[0], *words, command[1])
        assert code in (1, 2) and f"cluster.slurm.container={tmp_path} is another folder" in output, output


@pytest.mark.parametrize("image", ["image.sqsh", "trainer.sif", "~/image.sqsh", "a b"])
def test_what_pyxis_would_take_for_an_address_is_told(image: str) -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.slurm\.container=.* is neither a path nor an image's address"):
        check_images(SlurmConfig(container=image))
