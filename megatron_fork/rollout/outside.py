"""An engine of the user's own, with what it answers looked at: a response that does not fit is told before it is trained on."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from megatron_fork.errors import ExtensionError
from megatron_fork.recipe import told_by_name
from megatron_fork.rollout.engine import Completion, Engine, InProcessEngine, Request


class OutsideEngine(Engine):
    """Hands everything on to `engine`; what that raises or answers amiss is an `ExtensionError` with its name."""

    def __init__(self, engine: Engine, name: str, *, vocabulary: int) -> None:
        """`name`: as the recipe has it; `vocabulary`: size of the model's, below which token ids lie."""
        self._engine = engine
        self._name = name
        self._vocabulary = vocabulary
        self._aborted = False
        self._asked: dict[int, Request] = {}
        """What was submitted and not answered yet, by number."""

    @property
    def is_coordinated(self) -> bool:
        return self._engine.is_coordinated

    @property
    def parameters(self) -> int:
        return self._engine.parameters

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Every request is answered once, but where the engine is aborted."""
        asked = {request.number: request for request in requests}
        self._aborted = False
        with self._told():
            for completion in self._engine.generate(requests):
                yield self._checked(completion, asked)
        if asked and not self._aborted:
            raise self._wrong(f"left {len(asked)} of {len(requests)} requests unanswered")

    def submit(self, requests: Sequence[Request]) -> None:
        self._asked |= {request.number: request for request in requests}
        with self._told():
            self._engine.submit(requests)

    def completions(self) -> Generator[Completion | None, None, None]:
        """Of an engine that answers all it has as one batch, None says that nothing is left."""
        in_batches = isinstance(self._engine, InProcessEngine)
        in_batches = in_batches and type(self._engine).completions is InProcessEngine.completions
        self._aborted = False
        with self._told():
            for completion in self._engine.completions():
                if completion is None and in_batches and self._asked and not self._aborted:
                    raise self._wrong(f"left {len(self._asked)} requests unanswered")
                yield None if completion is None else self._checked(completion, self._asked)

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        with self._told():
            return self._engine.replicas(requests)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        with self._told():
            self._engine.update_weights(weights, version)

    def abort(self) -> None:
        self._aborted = True
        with self._told():
            self._engine.abort()

    def unfinished(self) -> list[Request]:
        with self._told():
            left = self._engine.unfinished()
        for request in left:
            self._asked.pop(request.number, None)
        return left

    def rest(self) -> None:
        with self._told():
            self._engine.rest()

    def health(self) -> bool:
        with self._told():
            return self._engine.health()

    def close(self) -> None:
        with self._told():
            self._engine.close()

    def _told(self) -> AbstractContextManager[None]:
        return told_by_name("rollout.engine", self._name)

    def _checked(self, completion: object, asked: dict[int, Request]) -> Completion:
        """An answer to one of `asked`, which it leaves."""
        if not isinstance(completion, Completion):
            raise self._wrong(f"answers with {type(completion).__name__}, and not with a Completion")
        request = asked.pop(completion.number, None)
        if request is None:
            raise self._wrong(f"answers number {completion.number}, which is not asked for, or a second time")
        tokens, count = completion.tokens, len(completion.tokens)
        response = f"answers number {completion.number} with"
        if not 1 <= count <= request.max_tokens:
            raise self._wrong(f"{response} {count} tokens of at most {request.max_tokens}")
        if foreign := [token for token in tokens if type(token) is not int or not 0 <= token < self._vocabulary]:
            raise self._wrong(f"{response} the token {foreign[0]!r} of a vocabulary of {self._vocabulary}")
        if len(completion.logprob) != count or not all(map(math.isfinite, completion.logprob)):
            raise self._wrong(
                f"{response} {count} tokens, whose log-probs are {len(completion.logprob)}, or not finite"
            )
        if request.reports_kept and (completion.kept is None or len(completion.kept) != count):
            sets = 0 if completion.kept is None else len(completion.kept)
            raise self._wrong(f"{response} {count} tokens, and what {sets} of them were drawn from")
        ends = [0, *(span.end for span in completion.versions)]
        if [span.start for span in completion.versions] != ends[:-1] or ends[-1] != count or ends != sorted(ends):
            raise self._wrong(f"{response} {count} tokens, which its versions do not cover: {completion.versions}")
        return completion

    def _wrong(self, what: str) -> ExtensionError:
        return ExtensionError(
            f"rollout.engine={self._name} {what}", hint="megatron_fork/rollout/engine.py says what an engine answers"
        )
