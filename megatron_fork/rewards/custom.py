"""A verifier of the user's own: `rewards.kind: module:function`.

The function takes `(response, answer)` and returns a number from 0 to 1, a bool, a `Score`, or `(value, reason)`. The module is
searched where Python searches, and in the current folder.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_fork.rewards.score import RewardError, Score

NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_custom(kind: str) -> bool:
    return NAME.fullmatch(kind) is not None


@lru_cache(maxsize=8)
def load_custom(kind: str) -> Callable[[str, str], Score]:
    """The verifier that `module:function` names; raises RewardError where there is none."""
    module_name, _, function_name = kind.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's may fail in any way there is
        raise RewardError(
            f"rewards.kind={kind}: module {module_name} cannot be imported: {type(error).__name__}: {error}",
            hint="install it, or put its file into the folder that the run is started from",
        ) from error
    function = vars(module).get(function_name)
    if not callable(function):
        raise RewardError(
            f"rewards.kind={kind}: {module_name} has no function {function_name}", hint="name it module:function"
        )
    return lambda response, answer: as_score(function(response, answer))


def as_score(result: Any) -> Score:
    """What a verifier may return, as a `Score`; raises ValueError on anything else."""
    if isinstance(result, Score):
        value, reason = result.value, result.reason
    elif isinstance(result, tuple) and len(result) == 2:
        value, reason = result
    else:
        value, reason = result, "custom verifier"
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"a reward of {value}")
    return Score(value, " ".join(str(reason).split()))
