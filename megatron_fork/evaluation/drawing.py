"""Draws the responses of an evaluation and writes them as trace files, so that whatever is finished is never drawn again.

Engines that draw in batches get whole batches, a part on each rank: a response's numbers then do not depend on where an earlier
attempt was stopped. All others get every request at once, so that no request waits for others, and write from time to time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from megatron_fork.distributed import collectives
from megatron_fork.errors import RolloutError
from megatron_fork.evaluation.problems import Wanted
from megatron_fork.rewards import RewardPool, Score, read_reference
from megatron_fork.rollout import (
    Completion,
    Engine,
    RolloutConfig,
    engine_kind,
    request_for,
    text_of,
    trajectory_of,
)
from megatron_fork.traces import Kind, TokenTexts, TracedResponse, traced

_Unjudged = tuple[Wanted, Completion, str]
SAY_SECONDS = 0.5
WRITE_SECONDS = 60.0
WRITE_TOKENS = 1 << 20


@dataclass
class Drawing:
    """How responses are drawn, judged and kept; every rank has one and makes the same calls."""

    engine: Engine
    config: RolloutConfig
    rewards: Mapping[str, RewardPool] | None
    """By set; None: nothing judges the responses."""
    texts: TokenTexts
    world: collectives.Group
    seed: int
    kind: Kind
    keep: Callable[[Sequence[TracedResponse]], None]
    """Writes responses to a file of this rank."""
    advanced: Callable[[int], None] = lambda responses: None
    """Called with how many responses more are finished, of this rank."""
    greedy: bool = False
    engine_seconds: float = 0.0
    """Spent waiting for the engine, of this rank."""
    _finished: list[_Judged] = field(default_factory=list)
    _writer: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, max_workers=1))
    _written: Future[None] | None = None

    def draw(self, wanted: Sequence[Wanted]) -> None:
        """Draw and write all of `wanted`, once; what was finished before an error is written. Ranks give the same list."""
        with self._writer:
            self._draw_all(wanted)
            self._wait()

    def _draw_all(self, wanted: Sequence[Wanted]) -> None:
        if self.engine.is_coordinated or not engine_kind(self.config.engine).draws_in_rounds:
            self._draw(wanted)
            return
        a_time = self.config.batch_size * collectives.size(self.world)
        for first in range(0, len(wanted), a_time):
            self._draw(wanted[first : first + a_time], keeps_parts=False)

    def _draw(self, wanted: Sequence[Wanted], *, keeps_parts: bool = True) -> None:
        """Of an engine that draws in batches a part of a batch would be of no use: the rest of it is drawn as it was."""
        rank, ranks = collectives.rank(self.world), collectives.size(self.world)
        numbers = range(len(wanted)) if self.engine.is_coordinated else range(rank, len(wanted), ranks)
        numbers = range(0) if self.engine.is_coordinated and rank else numbers
        requests = [
            request_for(
                wanted[number].problem.prompt,
                number,
                wanted[number].seed(self.seed),
                self.config,
                greedy=self.greedy,
            )
            for number in numbers
        ]
        if not requests:
            for _ in self.engine.generate([]):  # until the first rank has all
                pass
            return
        spoke = wrote = time.monotonic()
        unsaid = tokens = 0
        try:
            for judged in self._judged(self._timed(self.engine.generate(requests)), wanted):
                self._finished.append(judged)
                unsaid += 1
                tokens += len(judged.completion.tokens)
                if self._written is not None and self._written.done():
                    self._wait()  # a full disk is told now, not when there is more to write
                now = time.monotonic()
                if now - spoke > SAY_SECONDS:
                    self.advanced(unsaid)
                    spoke, unsaid = now, 0
                if keeps_parts and (now - wrote > WRITE_SECONDS or tokens > WRITE_TOKENS):
                    self._write()
                    wrote, tokens = now, 0
            self.advanced(unsaid)
        except BaseException:
            if keeps_parts:
                self._write()
            raise
        if len(self._finished) < len(requests) and not keeps_parts:
            raise RolloutError(
                f"rollout.engine={self.config.engine} answered {len(self._finished)} of {len(requests)} requests",
                hint="start the command again: it goes on from there",
            )
        self._write()

    def _timed(self, completions: Iterator[Completion]) -> Iterator[Completion]:
        while True:
            began = time.perf_counter()
            completion = next(completions, None)
            self.engine_seconds += time.perf_counter() - began
            if completion is None:
                return
            yield completion

    def _write(self) -> None:
        """Write what is finished beside the engine's further work; raises what writing the files before it raised."""
        self._wait()
        finished, self._finished = self._finished, []
        if finished:
            self._written = self._writer.submit(self._keep, finished)

    def _wait(self) -> None:
        """Until everything is on the disk; raises what writing it raised."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def _keep(self, finished: Sequence[_Judged]) -> None:
        texts = self.texts.of_all((each.completion.tokens, each.after) for each in finished)
        self.keep([self._row(each, of_tokens) for each, of_tokens in zip(finished, texts, strict=True)])

    def _judged(self, completions: Iterator[Completion], wanted: Sequence[Wanted]) -> Iterator[_Judged]:
        """Responses as their scores arrive: while the verifier works on one, the engine draws others."""
        if self.rewards is None:
            for completion in completions:
                text = text_of(self.texts.tokenizer, completion.tokens)
                yield _Judged(wanted[completion.number], completion, text, None)
            return
        with ExitStack() as stack:
            pools = {id(pool): pool for pool in self.rewards.values()}
            streams = {place: stack.enter_context(pool.stream()) for place, pool in pools.items()}
            waiting: dict[int, dict[int, _Unjudged]] = {place: {} for place in pools}
            for completion in completions:
                each = wanted[completion.number]
                text = text_of(self.texts.tokenizer, completion.tokens)
                place = id(self.rewards[each.problem.set])
                number = streams[place].submit(text, each.problem.prompt.answer)
                waiting[place][number] = each, completion, text
                for at, scoring in streams.items():
                    yield from _scored(scoring.finished(), waiting[at])
            for at, scoring in streams.items():
                yield from _scored(scoring.drain(), waiting[at])

    def _row(self, judged: _Judged, token_texts: Sequence[str]) -> TracedResponse:
        problem = judged.wanted.problem
        row = traced(
            trajectory_of(judged.completion, problem.prompt, judged.text, judged.score or Score(0.0, "")),
            token_texts,
            set=problem.set,
            prompt_id=problem.id,
            answer=str(read_reference(problem.prompt.answer)),
            sample=judged.wanted.sample,
            kind=self.kind,
        )
        return row if judged.score else replace(row, reward=None)


def _scored(scores: Iterator[tuple[int, Score]], waiting: dict[int, _Unjudged]) -> Iterator[_Judged]:
    for number, score in scores:
        yield _Judged(*waiting.pop(number), score)


class _Judged(NamedTuple):
    """A response with its score; None if nothing judges it."""

    wanted: Wanted
    completion: Completion
    text: str
    score: Score | None

    @property
    def after(self) -> int | None:
        """The token before the response."""
        prompt = self.wanted.problem.prompt.tokens
        return prompt[-1] if prompt else None
