"""What a field declares is what it takes: any other value is one line that names field and value, and the way out."""

from dataclasses import fields, is_dataclass
from math import inf, nan
from typing import Any, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recipe_fields import leaves

from megatron_fork.config import RunConfig
from megatron_fork.errors import MegatronForkError
from megatron_fork.policy import OptimizerConfig
from megatron_fork.recipe import bare, choices_of, may_be_infinite, range_of, types_of, without_none


def rooms(cls: Any, path: str = "") -> dict[str, Any]:
    """Every class of settings by its dotted place in a recipe."""
    below = [rooms(hint, f"{path}{name}.") for name, hint in types_of(cls).items() if is_dataclass(hint)]
    return {path: cls} | {name: each for found in below for name, each in found.items()}


ROOMS = rooms(RunConfig)
FIELDS = [(room, cls, name) for room, cls in ROOMS.items() for name in types_of(cls) if name in dict(leaves(cls))]
NUMBERS = [each for each in FIELDS if bare(types_of(each[1])[each[2]])[0] in (int, float)]
ANY = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)


def refused(cls: Any, name: str, value: Any) -> MegatronForkError | None:
    try:
        cls(**{name: value})
    except MegatronForkError as error:
        return error
    return None


def is_of_its_type(hint: Any, value: Any) -> bool:
    """The rules of a field's type, said once more without pydantic."""
    inner, declared = bare(hint)
    if value is None:
        return without_none(hint)[1]
    if choices_of(hint):
        return isinstance(value, str) and value in choices_of(hint)
    kind = get_origin(inner) or inner
    if not isinstance(value, (int, float) if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
        return False
    if kind is list:
        return all(is_of_its_type(inner.__args__[0], each) for each in value)
    if kind is float and not abs(value) < inf and not (value == inf and may_be_infinite(hint)):
        return False
    holds = {
        Ge: lambda bound: value >= bound.ge,
        Gt: lambda bound: value > bound.gt,
        Le: lambda bound: value <= bound.le,
        Lt: lambda bound: value < bound.lt,
    }
    return all(holds[type(each)](each) for each in declared if type(each) in holds)


def test_every_room_says_where_it_lies() -> None:
    """By which a class that is made by hand names its fields; the optimizer lies in three, which the reader tells apart."""
    assert len(ROOMS) > 20 and len(FIELDS) > 150
    for room, cls in ROOMS.items():
        assert cls._room == ("" if cls is OptimizerConfig else room)


@settings(max_examples=1500, deadline=None)
@given(field=st.sampled_from(FIELDS), value=ANY)
def test_what_a_field_does_not_declare_is_refused(field: tuple[str, Any, str], value: Any) -> None:
    _, cls, name = field
    error = refused(cls, name, value)
    if is_of_its_type(types_of(cls)[name], value):
        assert (
            error is None or " is not text" not in error.message
        )  # by what several fields are together, or by a table
    else:
        assert error is not None
        assert error.message.startswith(f"{cls._room}{name}=") and error.message.isprintable()
        assert error.hint


@pytest.mark.parametrize(("room", "cls", "name"), NUMBERS, ids=[f"{room}{name}" for room, _, name in NUMBERS])
def test_a_number_out_of_range_is_told_with_its_range(room: str, cls: Any, name: str) -> None:
    hint = types_of(cls)[name]
    wanted, otherwise = range_of(hint)
    if wanted:
        below = -(2**63) - 1 if bare(hint)[0] is int else -0.5
        error = refused(cls, name, below)
        assert error is not None and error.message == f"{cls._room}{name}={below} is {otherwise}"
        assert wanted in error.hint and name in error.hint
    if bare(hint)[0] is float:
        for value in (nan, -inf) if may_be_infinite(hint) else (nan, inf, -inf):
            error = refused(cls, name, value)
            assert error is not None and error.message == f"{cls._room}{name}={value} is not a finite number"


def test_every_number_has_a_range_or_is_known_to_have_none() -> None:
    """Seeds that are hashed are any number; the others are places on an axis."""
    free = {f"{room}{name}" for room, cls, name in NUMBERS if not range_of(types_of(cls)[name])[0]}
    assert free == {
        "data.seed",
        "data.generator.seed",
        "selection.seed",
        "selection.soft_entropy.start",
        "selection.soft_entropy.end",
        "objective.cov_low",
        "objective.cov_high",
        "rollout.entropy_temperature.threshold",
    }


def test_a_near_word_is_meant() -> None:
    error = refused(ROOMS["data."], "preset", "gsm9k")
    assert error is not None and error.message.startswith("data.preset=gsm9k is not one of dapo_math_17k, math,")
    assert "did you mean gsm8k?" in error.hint


def test_no_refusal_shows_a_login() -> None:
    for value in (
        "http://me:hunter22@node7:8000",
        ["http://me:hunter22@node7:8000", 3],
        {"http://me:hunter22@node7": 1},
    ):
        error = refused(ROOMS["rollout."], "servers", value)
        assert error is not None and error.message.startswith("rollout.servers=")
        assert "hunter22" not in f"{error.message}{error.hint}"


def test_a_room_is_no_other_room() -> None:
    error = refused(RunConfig, "data", 3)
    assert error is not None and error.message == "data=3 is not a DataConfig"


def test_no_default_is_shared() -> None:
    """A list or a room that is changed in one run's settings is another's no more."""
    one, other = RunConfig(), RunConfig()
    for room, cls in ROOMS.items():
        for entry in fields(cls):
            first, second = one, other
            for part in [*room.split(".")[:-1], entry.name]:
                first, second = getattr(first, part), getattr(second, part)
            assert not isinstance(first, list | dict) or first is not second
