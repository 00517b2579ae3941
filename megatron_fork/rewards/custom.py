"""The user's own verifier: `rewards.kind: module:function`.

The function takes `(response, answer)`, or by name the arguments of verl's functions: `data_source, solution_str, ground_truth,
extra_info`. It returns a number from 0 to 1, a bool, a `Score`, or `(value, reason)`; one with verl's arguments may also return
a dict with "score". The module is searched on Python's path and in the current folder.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_fork.rewards.reference import Reference
from megatron_fork.rewards.score import Failure, RewardError, Score, printable

NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# The two arguments that a function of either form must name; it may then name other fields of a row.
OURS = ("response", "answer")
VERL = ("solution_str", "ground_truth")
OF_ROW = ("data_source", "extra_info")
FORMS = "(response, answer), or (data_source, solution_str, ground_truth, extra_info) by name"
BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
COLLECTS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
MAX_REASON_CHARACTERS = 1000


@dataclass(frozen=True)
class CustomVerifier:
    """A function with the names of its arguments."""

    function: Callable[..., Any]
    positional: tuple[str, ...]
    named: tuple[str, ...] = ()

    @property
    def takes_row(self) -> bool:
        """Whether it needs other fields of a row than its answer."""
        return not set(OF_ROW).isdisjoint((*self.positional, *self.named))

    def __call__(self, response: str, answer: str, reference: Reference) -> Score:
        """Judge by one of the answers of `reference`; raises what the function raises."""
        values = {
            **dict.fromkeys(("response", "solution_str"), response),
            **dict.fromkeys(("answer", "ground_truth"), answer),
            "data_source": reference.data_source,
            "extra_info": reference.extra_info,
        }
        result = self.function(
            *(values[name] for name in self.positional), **{name: values[name] for name in self.named}
        )
        try:
            return as_score(result, may_have_fields=set(VERL) <= {*self.positional, *self.named})
        except (TypeError, ValueError, OverflowError):
            if inspect.iscoroutine(result):
                result.close()  # else Python complains that it was never awaited
            reason = (
                f"verifier returned {printable(repr(result), 100)}, which is not a finite number, bool, Score or pair"
            )
            return Score(0.0, f"{reason} of a number and a reason ({_place(self.function)})", "error")


def is_custom(kind: str) -> bool:
    return NAME.fullmatch(kind) is not None


@lru_cache(maxsize=8)
def load_custom(kind: str) -> CustomVerifier:
    """The verifier that `module:function` names; raises RewardError if there is none, or its arguments do not fit."""
    module_name, _, function_name = kind.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may fail in any way
        raise RewardError(
            f"rewards.kind={kind}: module {module_name} cannot be imported: {type(error).__name__}: {error}",
            hint="install it, or put its file into the folder where you start the run",
        ) from error
    function = vars(module).get(function_name)
    if not callable(function):
        raise RewardError(
            f"rewards.kind={kind}: {module_name} has no function {function_name}", hint="name it module:function"
        )
    for called in (function, type(function).__call__):
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise RewardError(
                f"rewards.kind={kind} is an async function, which gives no score when it is called",
                hint="write it with def; it may call asyncio.run(...)",
            )
        if inspect.isgeneratorfunction(called):
            raise RewardError(
                f"rewards.kind={kind} is a generator, which gives no score when it is called",
                hint="return the score instead of yielding it",
            )
    return _with_arguments(function, kind)


def _with_arguments(function: Callable[..., Any], kind: str) -> CustomVerifier:
    """`function` with its arguments; raises RewardError that names its parameters if it fits neither form."""
    try:
        signature = inspect.Signature.from_callable(function)
    except (TypeError, ValueError):  # some functions written in C do not say
        return CustomVerifier(function, OURS)
    parameters = signature.parameters
    for pair in (OURS, VERL):
        if not set(pair) <= parameters.keys():
            continue
        takes_any_name = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        taken = [*parameters, *(OF_ROW if takes_any_name and pair == VERL else ())]
        given = dict.fromkeys(name for name in taken if name in (*pair, *OF_ROW))
        first = [name for name, each in parameters.items() if each.kind is inspect.Parameter.POSITIONAL_ONLY]
        needed = [each.name for each in parameters.values() if each.kind not in COLLECTS and each.default is each.empty]
        if given.keys() >= {*first, *needed}:
            return CustomVerifier(function, tuple(first), tuple(name for name in given if name not in first))
    if _fits_by_position(signature):
        return CustomVerifier(function, OURS)
    raise RewardError(
        f"rewards.kind={kind} takes {signature}, which are not a verifier's arguments", hint=f"it must take {FORMS}"
    )


def _fits_by_position(signature: inspect.Signature) -> bool:
    """Whether two values fit, and no parameter's name means something else."""
    try:
        signature.bind("response", "answer")
    except TypeError:
        return False
    names = [each.name for each in signature.parameters.values() if each.kind in BY_POSITION][:2]
    meant = (OURS[0], VERL[0]), (OURS[1], VERL[1])
    known = {*OURS, *VERL, *OF_ROW}
    return all(name not in known or name in fitting for name, fitting in zip(names, meant, strict=False))


def as_score(result: Any, *, may_have_fields: bool = False) -> Score:
    """The result of a verifier as a `Score`; raises ValueError, TypeError or OverflowError if it cannot be one.

    `may_have_fields`: accept a mapping with "score" too, whose other fields become the reason.
    """
    failure: Failure | None = None
    if isinstance(result, Score):
        value, reason, failure = result.value, result.reason, result.failure and "error"
    elif may_have_fields and isinstance(result, Mapping) and "score" in result:
        value = result["score"]
        reason = ", ".join(f"{name}: {said}" for name, said in result.items() if name != "score") or "custom verifier"
    elif isinstance(result, tuple) and len(result) == 2:
        value, reason = result
    else:
        value, reason = result, "custom verifier"
    if isinstance(value, str | bytes | bytearray):
        raise TypeError("a reward of text")  # float() would read it
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"a reward of {value}")
    return Score(value, printable(str(reason), MAX_REASON_CHARACTERS), failure)


def _place(function: Callable[..., Any]) -> str:
    """File and line of a function, or of the class of another callable, as far as Python knows them."""
    written = inspect.unwrap(function) if inspect.isroutine(function) else type(function)
    try:
        return f"{inspect.getsourcefile(written)}:{inspect.getsourcelines(written)[1]}"
    except (TypeError, OSError):
        return repr(function)
