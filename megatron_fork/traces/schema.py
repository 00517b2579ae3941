"""The columns of a trace file: one row a response, one entry of its lists a response token. docs/traces.md lists them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow

KINDS = ("trained", "without_signal", "evaluation", "generated", "given")
Kind = Literal["trained", "without_signal", "evaluation", "generated", "given"]
VERSION = 1
METADATA_KEY = b"megatron_fork.traces"
# Nats: rounding may lift the log-prob of a certain token above 0.
MOST_LOGPROB = 0.01


@dataclass(frozen=True)
class Column:
    """A column: its Arrow type by name, whether each row has a value, whether a list has one entry a response token."""

    name: str
    type: str
    meaning: str
    required: bool = True
    per_token: bool = False


COLUMNS = (
    Column("set", "string", "name of the prompt set, such as `aime_2024`; `training` and `held_out` in a run"),
    Column("prompt_id", "string", "the same for the same question, whatever the template"),
    Column("prompt", "string", "text that the model read"),
    Column("prompt_tokens", "list<int32>", "its token ids; the first response token has position `len(prompt_tokens)`"),
    Column("answer", "string", "reference answer; empty if there is none"),
    Column("sample", "int32", "place among the responses to the prompt, from 0"),
    Column("response", "string", "text of the response"),
    Column("tokens", "list<int32>", "its token ids", per_token=True),
    Column(
        "token_texts",
        "list<binary>",
        "UTF-8 bytes that each token adds to the text; one alone may be a part of a character",
        required=False,
        per_token=True,
    ),
    Column(
        "entropy",
        "list<float>",
        "nats, of the full softmax at the file's temperature; null if it was not computed",
        required=False,
        per_token=True,
    ),
    Column(
        "logprob",
        "list<float>",
        "nats, of the token: of the policy before the step's updates where the response was trained on, else the engine's; "
        "under the softmax over its kept set where there are `kept_tokens`",
        required=False,
        per_token=True,
    ),
    Column(
        "kept_tokens",
        "list<int32>",
        "how many tokens top-p, top-k and min-p left it to be drawn from; 0: all; null if the engine did not report them",
        required=False,
        per_token=True,
    ),
    Column(
        "selected", "list<bool>", "whether it carried gradient; null if not trained on", required=False, per_token=True
    ),
    Column(
        "weight_version",
        "list<int32>",
        "which weights drew it: updates of the engine since the run began; null if unknown",
        required=False,
        per_token=True,
    ),
    Column("reward", "double", "the verifier's; null if nothing judged it", required=False),
    Column("reason", "string", "the verifier's reason; empty if it gave none"),
    Column("failure", "string", "`error`, `timed_out` or `died`, if the verifier failed on it", required=False),
    Column("finish_reason", "string", "`stop`, or `length` where the response was cut"),
    Column("kind", "string", "`" + "`, `".join(KINDS) + "`"),
    Column("step", "int32", "trainer step that it belongs to; null outside of a run", required=False),
    Column("number", "int32", "place in the rollouts of the step; null outside of a run", required=False),
    Column("advantage", "double", "null if not trained on", required=False),
)
BY_NAME: Mapping[str, Column] = {column.name: column for column in COLUMNS}


@dataclass(frozen=True)
class Origin:
    """What the file says of all its responses, as JSON under `megatron_fork.traces` in its metadata."""

    model: str = ""
    """Folder of the model that wrote the log-probs and entropies."""
    tokenizer: str = ""
    """Fingerprint of the vocabulary; tokens of another one are not comparable."""
    vocab_size: int = 0
    """Columns of the softmax; 0 if unknown."""
    temperature: float = 1.0
    """Of the softmax whose log-probs and entropies these are."""
    written_by: str = ""
    """Command and version."""

    def encoded(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}).encode()

    @classmethod
    def decoded(cls, text: bytes) -> Origin:
        """The origin in a file's metadata; raises `ValueError` if it is none, or of a later version."""
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("version"), int):
            raise ValueError("not a JSON object with a version")
        if found["version"] > VERSION:
            raise ValueError(f"version {found['version']} of the trace schema; this program knows {VERSION}")
        values: dict[str, Any] = {}
        for field in fields(cls):
            value, default = found.get(field.name, field.default), field.default
            kinds = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{field.name}={value!r} is not a {type(default).__name__}")
            values[field.name] = value
        if not 0 < values["temperature"] < math.inf:
            raise ValueError(f"temperature={values['temperature']} is not positive")
        return cls(**values)


@dataclass(frozen=True)
class TracedResponse:
    """A row. Lists have one entry a response token; see `COLUMNS` for meanings and units."""

    set: str
    prompt_id: str
    prompt: str
    prompt_tokens: Sequence[int]
    answer: str
    sample: int
    response: str
    tokens: Sequence[int]
    finish_reason: str
    kind: Kind
    token_texts: Sequence[str] | None = None
    """Bytes that are not text are surrogates, as Python's `surrogateescape` makes them."""
    entropy: Sequence[float] | None = None
    logprob: Sequence[float] | None = None
    kept_tokens: Sequence[int] | None = None
    selected: Sequence[bool] | None = None
    weight_version: Sequence[int] | None = None
    reward: float | None = None
    reason: str = ""
    failure: str | None = None
    step: int | None = None
    number: int | None = None
    advantage: float | None = None


@cache
def arrow_schema() -> pyarrow.Schema:
    """All columns, in their order."""
    import pyarrow as pa  # here, since settings are read before it is imported

    scalars = {
        "string": pa.string(),
        "binary": pa.binary(),
        "int32": pa.int32(),
        "float": pa.float32(),
        "double": pa.float64(),
        "bool": pa.bool_(),
    }

    def type_of(name: str) -> pyarrow.DataType:
        return pa.list_(type_of(name[5:-1])) if name.startswith("list<") else scalars[name]

    return pa.schema([pa.field(column.name, type_of(column.type), nullable=not column.required) for column in COLUMNS])
