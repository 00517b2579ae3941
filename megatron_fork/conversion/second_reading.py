"""A second way to read a Hugging Face folder, for the proof: it has none of `WeightFolder`'s code, whose faults thus show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class SecondReading(Mapping[str, Tensor]):
    """Tensors as the safetensors library reads them, each from the file that the index names; one in memory at a time.

    Of a folder that `check_folder` has accepted: what is wrong with files and index has been said there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._file_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
        else:
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                self._file_of = dict.fromkeys(file.keys(), "model.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        # Opened anew for each: what was read of a file that stays mapped counts as this process's memory.
        with safe_open(self._folder / self._file_of[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)
