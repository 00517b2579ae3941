"""A recipe as text and as typed fields: reading without loss, references, checks of names and kinds, meanings."""

from megatron_fork.recipe.comparison import different, flat, letters
from megatron_fork.recipe.fields import FieldReader, one_line
from megatron_fork.recipe.meanings import described
from megatron_fork.recipe.references import as_written, resolve
from megatron_fork.recipe.text import key_text, plain, read_yaml, write_yaml

__all__ = [
    "FieldReader",
    "as_written",
    "described",
    "different",
    "flat",
    "key_text",
    "letters",
    "one_line",
    "plain",
    "read_yaml",
    "resolve",
    "write_yaml",
]
