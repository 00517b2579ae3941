"""Draws the responses of a decoding intervention, cell by cell with one engine; whatever is finished is never drawn again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_fork import __version__
from megatron_fork.analysis import Cell, CellResult, Intervention, cell_result
from megatron_fork.config import RunConfig
from megatron_fork.data import PromptSource
from megatron_fork.distributed import collectives
from megatron_fork.errors import ConfigError, MegatronForkError, RolloutError
from megatron_fork.evaluation import (
    Drawing,
    EvaluationFolder,
    Problem,
    PromptSet,
    Wanted,
    claim_folder,
    digest,
    missing,
    problems_of,
)
from megatron_fork.experience import Prompt
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout import Engine, Request, check_engine
from megatron_fork.run.asked import deciding, settings_of_drawing
from megatron_fork.run.console import Display
from megatron_fork.run.offline import ModelContext, build_engine, give_weights, load_policy, model_context
from megatron_fork.run.prompt_sets import load_set
from megatron_fork.run.provenance import provenance
from megatron_fork.serving import EntropyTemperature
from megatron_fork.traces import Origin, TokenTexts, open_traces, vocabulary_fingerprint

_PROBES, _PROBE_TOKENS = 4, 16


@dataclass(frozen=True)
class AskedCells:
    """What is drawn, and where it is kept."""

    cells: Sequence[Cell]
    threshold: float
    """Nats."""
    prompts: PromptSet
    out: Path
    limit: int | None = None
    """Only the first so many prompts."""
    token_budget: int | None = None
    """Drawn tokens of all attempts together; a cell that might take more than is left is not begun."""


def intervene(config: RunConfig, asked: AskedCells, display: Display) -> Intervention:
    """Draw what is missing of every cell; every rank calls it, the first gets the results.

    Stopped at any moment, the same call goes on with what is finished. Raises a `MegatronForkError` for prompts, settings, a
    folder or an engine that do not fit.
    """
    if config.rollout.temperature != 1.0:
        raise ConfigError(
            f"rollout.temperature={config.rollout.temperature} with analyze intervene, which has temperatures of its own",
            hint="--setting rollout.temperature=1",
        )
    hint = f"what is finished is kept: the same command with --out={asked.out} goes on from there"
    with model_context(config, display, when_stopped=hint) as context, ExitStack() as stack:
        check_engine(config.rollout, ranks=context.layout.world.size())
        found = load_set(asked.prompts, config, context.hf_config, context.tokenizer)
        problems = problems_of(asked.prompts.name, found.source)[: asked.limit]
        _claim(context, asked, _settings(context, asked, problems), stack)
        cells = _Cells(
            context,
            asked,
            problems,
            found.source,
            stack.enter_context(RewardPool(asked.prompts.rewards or config.rewards)),
        )
        cells.say_cost()
        left_out = cells.draw()
        results = cells.results(left_out) if collectives.rank(context.layout.world) == 0 else []
        about = {
            "model": config.model.path or config.run.name,
            "engine": config.rollout.engine,
            "prompt_set": asked.prompts.name,
            "max_response_tokens": config.rollout.max_response_tokens,
            "drawn_tokens": cells.drawn_tokens(),
            "provenance": provenance(str(context.layout)),
        }
        return Intervention(results, left_out, asked.threshold, config.seed, about)


class _Cells:
    """The cells of an intervention on this rank, each with a folder of trace files."""

    def __init__(
        self,
        context: ModelContext,
        asked: AskedCells,
        problems: Sequence[Problem],
        source: PromptSource,
        rewards: RewardPool,
    ) -> None:
        self.context, self.asked, self.problems, self.source, self.rewards = context, asked, problems, source, rewards
        self.world = context.layout.world
        found = {cell: self._missing(cell) for cell in asked.cells} if self._is_first else {}
        self.wanted: dict[Cell, list[Wanted]] = collectives.broadcast_object(found, self.world)

    @property
    def _is_first(self) -> bool:
        return collectives.rank(self.world) == 0

    def say_cost(self) -> None:
        all_of_them = len(self.asked.cells) * len(self.problems) * self.asked.prompts.samples
        wanted, longest = sum(map(len, self.wanted.values())), self.context.config.rollout.max_response_tokens
        self.context.display.say(
            f"{len(self.asked.cells)} cells x {len(self.problems):,} prompts x {self.asked.prompts.samples} samples: "
            f"{all_of_them:,} responses, {all_of_them - wanted:,} are there; at most {wanted * longest:,} tokens to draw"
        )

    def draw(self) -> list[Cell]:
        """Draw what is missing, and return the cells that the token budget left out."""
        unfinished = [cell for cell in self.asked.cells if self.wanted[cell]]
        if not unfinished or not self._fits(unfinished[0]):
            return unfinished
        longest = self.source.longest_prompt
        with closing(build_engine(self.context, folder=self.asked.out, longest_prompt=longest)) as engine:
            give_weights(self.context, load_policy(self.context), engine, self.source)
            check_follows(engine, [each.prompt for each in self.problems], self.world)
            for number, cell in enumerate(unfinished):
                if not self._fits(cell):
                    return unfinished[number:]
                self._draw(engine, cell)
        return []

    def results(self, left_out: Collection[Cell]) -> list[CellResult]:
        """Of the cells that are complete; on the first rank."""
        cells, seed = [cell for cell in self.asked.cells if cell not in left_out], self.context.config.seed
        return [cell_result(cell, open_traces(*self._folder(cell).parts()), seed=seed) for cell in cells]

    def drawn_tokens(self) -> int:
        """Of all cells and attempts, on every rank."""
        parts = [part for cell in self.asked.cells for part in self._folder(cell).parts()] if self._is_first else []
        tokens = sum(int(part.lengths.sum()) for part in open_traces(*parts).parts(["tokens"])) if parts else 0
        return int(collectives.broadcast_object(tokens, self.world))

    def _fits(self, cell: Cell) -> bool:
        """Whether the budget lasts for the cell even if all of its responses are as long as they can be."""
        if self.asked.token_budget is None:
            return True
        most = len(self.wanted[cell]) * self.context.config.rollout.max_response_tokens
        return self.drawn_tokens() + most <= self.asked.token_budget

    def _draw(self, engine: Engine, cell: Cell) -> None:
        folder = self._folder(cell)
        folder.number = collectives.broadcast_object(folder.next_number() if self._is_first else 0, self.world)
        by_entropy = EntropyTemperature(threshold=self.asked.threshold, high=cell.high, low=cell.low)
        wanted, ranks = self.wanted[cell], 1 if engine.is_coordinated else collectives.size(self.world)
        with self.context.display.stage(cell.name, -(-len(wanted) // ranks)) as stage:
            Drawing(
                engine,
                replace(self.context.config.rollout, entropy_temperature=by_entropy),
                {self.asked.prompts.name: self.rewards},
                TokenTexts(self.context.tokenizer),
                self.world,
                self.context.config.seed,
                "evaluation",
                folder.keep,
                lambda count: stage.advance({}, steps=count, every_seconds=10.0),
            ).draw(wanted)
        collectives.gather_objects(None, self.world)  # every rank has written its files

    def _missing(self, cell: Cell) -> list[Wanted]:
        return missing(self.problems, self.asked.prompts.samples, self._folder(cell).finished())

    def _folder(self, cell: Cell) -> EvaluationFolder:
        """Raises nothing: it is there once it holds responses."""
        origin = Origin(
            model=str(self.context.config.model.path or ""),
            tokenizer=vocabulary_fingerprint(self.context.tokenizer),
            vocab_size=int(self.context.hf_config.vocab_size),
            written_by=f"megatron-fork analyze intervene {__version__}",
        )
        return EvaluationFolder(self.asked.out / "cells" / cell.name, collectives.rank(self.world), origin)


def check_follows(engine: Engine, prompts: Sequence[Prompt], world: collectives.Group) -> None:
    """Raise `RolloutError` if a server draws as if it had not been asked for a temperature by entropy. Every rank calls it.

    At temperature 0 every token that it draws is certain.
    """
    cold = EntropyTemperature(high=0.0, low=0.0)
    asked = [
        Request(number, prompt.tokens, number, 1.0, _PROBE_TOKENS, entropy_temperature=cold)
        for number, prompt in enumerate(prompts[:_PROBES])
    ]
    of_ranks = collectives.gather_objects(engine.replicas(asked), world)
    for name, completions in (entry for replicas in of_ranks for entry in replicas.items()):
        lowest = min(logprob for completion in completions for logprob in completion.logprob)
        if lowest < -1e-3:
            raise RolloutError(
                f"{name} does not follow the temperature by entropy: at temperature 0 it drew a token of log-prob {lowest:.3g}",
                hint="start it with its processor for the temperature by entropy: the table in docs/engines.md has the option",
            )


def _claim(context: ModelContext, asked: AskedCells, settings: dict[str, object], stack: ExitStack) -> None:
    """Take the folder until the stack ends; every rank raises the error if it cannot be taken."""
    problem: MegatronForkError | None = None
    if collectives.rank(context.layout.world) == 0:
        try:
            stack.enter_context(closing(claim_folder(asked.out, settings)))
        except MegatronForkError as error:
            problem = error
    problem = collectives.broadcast_object(problem, context.layout.world)
    if problem is not None:
        raise problem


def _settings(context: ModelContext, asked: AskedCells, problems: Sequence[Problem]) -> dict[str, object]:
    """What decides the responses of a cell; the cells themselves may be others when the intervention goes on."""
    return {
        **settings_of_drawing(context),
        "threshold": asked.threshold,
        "rewards": deciding(asked.prompts.rewards or context.config.rewards),
        "prompts": {"set": asked.prompts.name, "samples": asked.prompts.samples, "digest": digest(problems)},
    }
