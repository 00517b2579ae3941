"""Looks at this machine and prints what it found as one JSON line; run as a program of its own, for an import may crash it.

python probe.py DEVICE            versions, modules that are missing, and the GPU's memory
python probe.py import MODULE     whether the module imports, by the exit code
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
from typing import Any

PACKAGES = (
    "torch triton megatron-core transformers transformer-engine flash-attn liger-kernel liger-cute-kernels "
    "nvidia-cutlass-dsl trl verl numpy".split()
)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_there(module: str) -> bool:
    """Without importing it; its parent is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:
        return False


def gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "gpus": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "total_gib": round(total / 2**30, 1),
        "free_gib": round(free / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def main() -> None:
    if sys.argv[1] == "import":
        importlib.import_module(sys.argv[2])
        return
    modules = sys.argv[2:]
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "missing": [name for name in modules if not is_there(name)],
    }
    found["gpu"] = gpu() if sys.argv[1] == "cuda" and "torch" not in found["missing"] else None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
