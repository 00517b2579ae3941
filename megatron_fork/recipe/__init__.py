"""A recipe as text and as typed fields: reading without loss, references, checks of names and kinds, meanings."""

from megatron_fork.recipe.fields import FieldReader, check_known, one_line, shown
from megatron_fork.recipe.meanings import described
from megatron_fork.recipe.references import as_written, resolve
from megatron_fork.recipe.text import key_text, plain, read_yaml, write_yaml

__all__ = [
    "FieldReader",
    "as_written",
    "check_known",
    "described",
    "key_text",
    "one_line",
    "plain",
    "read_yaml",
    "resolve",
    "shown",
    "write_yaml",
]
