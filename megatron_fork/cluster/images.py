"""Whether what a recipe names as a container can be one: by a file's first bytes, before a job waits for it in the queue."""

from __future__ import annotations

from pathlib import Path

from megatron_fork.cluster.slurm import SlurmConfig
from megatron_fork.errors import ConfigError

_SQUASHFS = b"hsqs"
# A SIF file begins with a line of 32 bytes that a shell would run.
_SIF, _SIF_PLACE = b"SIF_MAGIC", 32
# What Apptainer leaves in every folder that it makes an image's root of.
_SANDBOX = ".singularity.d"
_IMAGES = ("a SIF file", "a squashfs file", "a sandbox")


def image_files(slurm: SlurmConfig) -> dict[str, str]:
    """The images that are files or folders, by field; addresses such as `docker://...`, and names for Enroot, are none."""
    images = {"container": slurm.container, "engine_container": slurm.engine_container}
    return {
        f"cluster.slurm.{name}": image
        for name, image in images.items()
        if image is not None
        and "://" not in image
        and (slurm.container_kind == "apptainer" or image.startswith(("/", "./", "../")))
    }


def check_images(slurm: SlurmConfig) -> None:
    """Raise `ConfigError` for an image that is not there, or that is none of `container_kind`; its first bytes are read."""
    for name, image in (("container", slurm.container), ("engine_container", slurm.engine_container)):
        if image is None or f"cluster.slurm.{name}" in image_files(slurm):
            continue
        if image.startswith("~") or image.endswith((".sqsh", ".sif")) or any(each.isspace() for each in image):
            raise ConfigError(
                f"cluster.slurm.{name}={image} is neither a path nor an image's address for {slurm.container_kind}",
                hint="begin a file's name with / or ./, and write no blanks in an address",
            )
    for field, image in image_files(slurm).items():
        try:
            found = _kind(Path(image))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"{field}={image} is not there", hint="name an image that every node sees, or null for none"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{field}={image} cannot be read: {error.strerror}", hint="check its permissions and its disk"
            ) from error
        if slurm.container_kind == "apptainer" and found not in _IMAGES:
            raise ConfigError(
                f"{field}={image} is {found}, and no image that Apptainer runs",
                hint="name a .sif file or a sandbox folder: apptainer build NAME.sif docker-daemon://IMAGE makes one",
            )
        if slurm.container_kind == "pyxis" and found != "a squashfs file":
            raise ConfigError(
                f"{field}={image} is {found}, and no image that Pyxis runs",
                hint="set cluster.slurm.container_kind=apptainer"
                if found in _IMAGES
                else "name a .sqsh file: enroot import -o NAME.sqsh dockerd://IMAGE makes one",
            )


def _kind(path: Path) -> str:
    """What lies there, in words."""
    if path.is_dir():
        return "a sandbox" if (path / _SANDBOX).is_dir() else "another folder"
    if not path.exists():
        raise FileNotFoundError
    if not path.is_file():
        return "no file"
    with path.open("rb") as file:
        head = file.read(_SIF_PLACE + len(_SIF))
    if head.startswith(_SQUASHFS):
        return "a squashfs file"
    if head[_SIF_PLACE:] == _SIF:
        return "a SIF file"
    return "an empty file" if not head else "another file"
