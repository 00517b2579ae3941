"""Log-probs and entropies of responses that there already are, under any model: one statistics pass over their tokens.

Families that this project builds go through the policy, under any layout of ranks; others through transformers, on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_fork import __version__, checkpoint, conversion, distributed, models
from megatron_fork.config import RunConfig, load_config
from megatron_fork.distributed import collectives
from megatron_fork.errors import ModelError, TraceError
from megatron_fork.experience import Batch, Demonstration, Prompt
from megatron_fork.files import path_at_home
from megatron_fork.policy import Policy
from megatron_fork.run.console import Display
from megatron_fork.run.offline import ModelContext, load_policy, model_context
from megatron_fork.run.place import MODEL_FILES, checkpoint_of, config_of
from megatron_fork.traces import Origin, TraceFiles, Traces, vocabulary_fingerprint

Array = np.ndarray[Any, np.dtype[np.float32]]


class Scores(NamedTuple):
    """`[response tokens]` float32 nats, in the order of the responses; empty but on the first rank."""

    logprob: Array
    entropy: Array


class Reader(Protocol):
    """A model whose tokens are known."""

    @property
    def config(self) -> RunConfig: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        ...


class Scorer(Reader, Protocol):
    """A model that gives the tokens of responses their log-probs and entropies."""

    def score(self, sequences: Sequence[Demonstration]) -> Scores:
        """Of all response tokens; every rank calls it with the same sequences, numbered by their places."""
        ...

    def load(self, model: models.ModelConfig) -> None:
        """Go on with the weights of another model of the same shape."""
        ...


class PolicyScorer:
    """The policy's statistics pass, as in training."""

    def __init__(self, context: ModelContext, policy: Policy) -> None:
        self.context, self.policy = context, policy

    @property
    def config(self) -> RunConfig:
        return self.context.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.context.tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self.context.hf_config.vocab_size)

    @property
    def longest(self) -> int:
        return models.longest_sequence(self.context.hf_config)

    def score(self, sequences: Sequence[Demonstration]) -> Scores:
        share = self.policy.share(Batch(sequences))
        statistics = self.policy.statistics(share)
        lengths = share.response_lengths
        columns = (statistics.logprob.split(lengths), statistics.entropy.split(lengths))
        mine = {
            sequence.number: (logprob_t.numpy(), entropy_t.numpy())
            for sequence, logprob_t, entropy_t in zip(share.sequences, *columns, strict=True)
        }
        gathered = collectives.gather_objects_to_first(mine, self.context.layout.data)
        found = {number: columns for part in gathered for number, columns in part.items()}
        return joined([found[sequence.number] for sequence in sequences] if is_first() else [])

    def load(self, model: models.ModelConfig) -> None:
        saved = checkpoint_of(model)
        if saved is None:
            conversion.load_initial(self.policy.model, model, seed=self.config.seed)
        else:
            checkpoint.verified(saved, group=self.context.layout.world)
            conversion.load_megatron(self.policy.model, saved / "policy")


@contextmanager
def scorer(
    place: Path, display: Display, *, saved: str | None = None, overrides: Sequence[str] = (), temperature: float = 1.0
) -> Iterator[Scorer]:
    """The model of a Hugging Face folder, a run or a recipe with its weights; see `config_of`.

    `saved`: name of a run's checkpoint; `temperature`: of the softmax, unless the overrides name `rollout.temperature`.
    Raises a `MegatronForkError`.
    """
    config = config_of(place, [f"rollout.temperature={temperature}", *overrides], checkpoint=saved)
    if config.model.path and not _is_ours(config.model):
        from megatron_fork.run.transformers_scoring import TransformersScorer

        display.say(f"{config.model.path} is of a family that transformers alone builds: one rank scores it")
        yield TransformersScorer(config)
        return
    with model_context(config, display) as context:
        yield PolicyScorer(context, load_policy(context))


def place_and_checkpoint(text: str) -> tuple[Path, str | None]:
    """What `MODEL`, `RUN` or `RUN@step-20` names; a folder with an @ in its name is itself."""
    whole = path_at_home(text)
    before, at, name = text.rpartition("@")
    if at and before and not whole.exists():
        return path_at_home(before), name
    return whole, None


def models_of_run(run: Path) -> list[str]:
    """The models that a run's folder has: its warm start or base model, its checkpoints by step, its final model."""
    own = load_config(run / "resolved.yaml")
    base = f"{run}@warm_start" if (run / "warm_start" / "config.json").is_file() else own.model.path
    steps = sorted(each.parent.parent.name for each in run.glob(f"checkpoints/step-*/{MODEL_FILES}/config.json"))
    final = [str(run)] if (run / "model" / "config.json").is_file() else []
    return [*([base] if base else []), *(f"{run}@{step}" for step in steps), *final]


def rescored(files: TraceFiles, scores: Scorer) -> Iterator[Traces]:
    """The responses part by part with the model's log-probs and entropies; on ranks but the first, parts without them.

    Both are of the whole softmax, whatever the tokens were drawn from.

    Every rank goes through it. Raises `TraceError` for tokens of another vocabulary and responses without a prompt.
    """
    check_vocabulary(files, scores)
    for part in files.parts():
        found = scores.score(sequences_of(part, scores))
        if is_first():
            part = part.with_flat(logprob=found.logprob, entropy=found.entropy, kept_tokens=None)
        yield part


class Entropies(NamedTuple):
    """`entropy`: `[response tokens]` float32 nats of all responses in order, empty but on the first rank; `lengths` of each."""

    entropy: Array
    lengths: np.ndarray[Any, np.dtype[np.int64]]


def entropies_of(files: TraceFiles, scores: Scorer) -> Entropies:
    """The entropies of all response tokens under the model, 4 bytes each; every rank calls it."""
    check_vocabulary(files, scores)
    entropy, lengths = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    for part in files.parts(["tokens", "prompt_tokens"]):
        entropy.append(scores.score(sequences_of(part, scores)).entropy)
        lengths.append(part.lengths)
    return Entropies(np.concatenate(entropy), np.concatenate(lengths))


def origin_of(scores: Reader, command: str) -> Origin:
    """What a file with these scores says of itself."""
    return Origin(
        model=scores.config.model.path or scores.config.run.name,
        tokenizer=vocabulary_fingerprint(scores.tokenizer),
        vocab_size=scores.vocab_size,
        temperature=scores.config.rollout.temperature,
        written_by=f"megatron-fork {command} {__version__}",
    )


def is_first() -> bool:
    return distributed.rank() == 0


def check_vocabulary(files: TraceFiles, scores: Reader) -> None:
    """Raise `TraceError` if the traces have tokens of another tokenizer than the model."""
    own, theirs = vocabulary_fingerprint(scores.tokenizer), files.origin.tokenizer
    if theirs and own != theirs:
        raise TraceError(
            f"{files.files[0]} has tokens of the vocabulary {theirs}, {scores.config.model.path or 'the model'} has {own}",
            hint="give a model with the tokenizer of the traces; `analyze MODEL --responses FILE` reads their text instead",
        )


def sequences_of(part: Traces, scores: Reader) -> list[Demonstration]:
    """The responses of a part, numbered by their places; raises `TraceError` for what a model cannot read."""
    sequences = []
    rows = zip(part.values("prompt_tokens"), part.values("tokens"), strict=True)
    for number, (prompt, response) in enumerate(rows):
        check_readable(prompt, response, scores, f"{part.where}, response {part.first + number}")
        sequences.append(Demonstration(number, Prompt(number, "", tuple(prompt), ""), np.asarray(response, np.int32)))  # type: ignore[arg-type]
    return sequences


def check_readable(prompt: Sequence[int], response: Sequence[int], reader: Reader, where: str) -> None:
    """Raise `TraceError` for a response that the model cannot read; `where` names it."""
    if not prompt:
        raise TraceError(
            f"{where} has no prompt tokens",
            hint="a first token has no probability without one",
        )
    if len(prompt) + len(response) > reader.longest + 1:
        raise TraceError(
            f"{where} has {len(prompt) + len(response):,} tokens with its prompt, more than "
            f"the model's max_position_embeddings={reader.longest:,}",
            hint="leave it out, or give the model rope_parameters for longer sequences",
        )
    if (largest := max([*prompt, *response])) >= reader.vocab_size:
        raise TraceError(
            f"{where} has token {largest}, the model's vocab_size is {reader.vocab_size}",
            hint="give the model, or one with the tokenizer, that the traces were made with",
        )


def joined(columns: Sequence[tuple[Array, Array]]) -> Scores:
    empty = np.zeros(0, np.float32)
    return Scores(*(np.concatenate([empty, *(each[place] for each in columns)]) for place in (0, 1)))


def _is_ours(model: models.ModelConfig) -> bool:
    """Whether this project builds such a model; raises `ModelError` for a folder that holds none."""
    config = conversion.read_config(Path(model.path or ""))
    try:
        models.family_of(config)
    except ModelError:
        return False
    return True
