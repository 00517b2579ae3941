"""Whether Megatron may have Transformer Engine: only where it can be imported and there is a GPU to run it.

Megatron imports Transformer Engine wherever it is installed. One that is built for another CUDA ends every program that imports
Megatron, whatever layers the recipe asks for; and without a GPU Megatron takes its optimizer and its norms, which then ask for
CUDA. So it is tried as soon as Megatron is imported, and kept from it where it cannot be used.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from typing import Any

_PACKAGE = "transformer_engine"
_EXTENSION = "transformer_engine_torch"  # which Megatron imports by itself, too
_reason: str | None = None
"""None until it is known."""


def unusable() -> str:
    """Why Megatron does without Transformer Engine, in a line; empty if it has it."""
    _try()
    return _reason or ""


def watch_for_megatron() -> None:
    """Try Transformer Engine just before Megatron is first imported."""
    if "megatron" not in sys.modules and not any(isinstance(finder, _BeforeMegatron) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeMegatron())


class _BeforeMegatron:
    """A finder that finds nothing, and acts once when it is asked for Megatron."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name == "megatron":
            sys.meta_path.remove(self)
            _try()
        return None


def _try() -> None:
    global _reason
    if _reason is not None:
        return
    _reason = _reason_against()
    # A program that imports Megatron before this package has let it have what there is.
    if _reason and not {_PACKAGE, "megatron"} & sys.modules.keys():
        sys.modules[_PACKAGE] = sys.modules[_EXTENSION] = None  # type: ignore[assignment]


def _reason_against() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no GPU is visible"
    if _PACKAGE not in sys.modules and importlib.util.find_spec(_PACKAGE) is None:
        return f"the package {_PACKAGE} is not installed"
    try:
        importlib.import_module(f"{_PACKAGE}.pytorch")
    except Exception as error:  # a broken installation may raise anything
        for name in [each for each in sys.modules if each.split(".")[0] in (_PACKAGE, _EXTENSION)]:
            del sys.modules[name]
        return f"the package {_PACKAGE} is installed but cannot be imported: {' '.join(str(error).split())[:300]}"
    return ""
