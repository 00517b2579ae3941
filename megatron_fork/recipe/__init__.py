"""A recipe: how fields of settings are declared and checked, how its text is read, and how entries are found by name."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.recipe.comparison import different, flat, letters
    from megatron_fork.recipe.description import described
    from megatron_fork.recipe.extension import check_name, check_part, entry_named, is_custom, part, told_by_name
    from megatron_fork.recipe.field_types import (
        EntryOf,
        FilePath,
        Fraction,
        FractionBelowOne,
        Gibibytes,
        Mebibytes,
        NatsOrInfinite,
        NonNegativeFloat,
        NonNegativeInt,
        NonNegativeMebibytes,
        OneOf,
        Pattern,
        PositiveFloat,
        PositiveFraction,
        PositiveInt,
        Seconds,
        Seed,
        Tokens,
        bare,
        choices_of,
        is_path,
        limits_of,
        may_be_custom,
        may_be_infinite,
        range_of,
        unit_of,
        without_none,
    )
    from megatron_fork.recipe.fields import FieldReader, one_line
    from megatron_fork.recipe.references import as_written, resolve
    from megatron_fork.recipe.settings import Settings, meanings, types_of
    from megatron_fork.recipe.shipped import alike, recipe_file, shipped_recipes
    from megatron_fork.recipe.text import key_text, plain, read_yaml, write_yaml
else:
    __getattr__ = opened(__name__, __file__)

__all__ = [
    "EntryOf",
    "FieldReader",
    "FilePath",
    "Fraction",
    "FractionBelowOne",
    "Gibibytes",
    "Mebibytes",
    "NatsOrInfinite",
    "NonNegativeFloat",
    "NonNegativeInt",
    "NonNegativeMebibytes",
    "OneOf",
    "Pattern",
    "PositiveFloat",
    "PositiveFraction",
    "PositiveInt",
    "Seconds",
    "Seed",
    "Settings",
    "Tokens",
    "alike",
    "as_written",
    "bare",
    "check_name",
    "check_part",
    "choices_of",
    "described",
    "different",
    "entry_named",
    "flat",
    "is_custom",
    "is_path",
    "key_text",
    "letters",
    "limits_of",
    "may_be_custom",
    "may_be_infinite",
    "meanings",
    "one_line",
    "part",
    "plain",
    "range_of",
    "read_yaml",
    "recipe_file",
    "resolve",
    "shipped_recipes",
    "told_by_name",
    "types_of",
    "unit_of",
    "without_none",
    "write_yaml",
]
