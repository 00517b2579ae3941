"""Draws, judges and counts responses of a model to whole prompt sets, outside of training: `evaluate` and `generate`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TextIO

from megatron_fork import __version__, rollout
from megatron_fork.config import RunConfig
from megatron_fork.distributed import collectives
from megatron_fork.errors import MegatronForkError
from megatron_fork.evaluation import (
    COLUMNS,
    RESULTS,
    Drawing,
    EvaluationFolder,
    Wanted,
    check_k,
    claim_folder,
    gather,
    interval_in_words,
    markdown,
    missing,
    powers,
    problems_of,
    results_of_set,
)
from megatron_fork.rewards import RewardPool, RewardsConfig
from megatron_fork.rollout import RemoteEngine
from megatron_fork.run.asked import Asked, Loaded, settings_of
from megatron_fork.run.console import Display
from megatron_fork.run.offline import ModelContext, build_engine, check_served, give_weights, load_policy, model_context
from megatron_fork.run.prompt_sets import load_set
from megatron_fork.run.provenance import provenance
from megatron_fork.run.scoring import PolicyScorer, sequences_of
from megatron_fork.traces import Origin, TokenTexts, TraceWriter, open_traces, vocabulary_fingerprint


def evaluate_model(config: RunConfig, asked: Asked, display: Display) -> Path:
    """Draw what is missing of the responses, and write what they say; returns the folder. Every rank calls it.

    Stopped at any moment, the same call goes on with what is finished. Raises a `MegatronForkError` for sets, settings or a
    folder that do not fit, before a model is built.
    """
    hint = f"what is finished is kept: the same command with --out={asked.out} goes on from there"
    with model_context(config, display, when_stopped=hint) as context, ExitStack() as stack:
        loaded = _load(context, asked)
        settings = settings_of(context, asked, loaded)
        folder = stack.enter_context(_claimed(context, asked, settings))
        rewards = _pools(context, asked, stack) if asked.judged else None
        finished = collectives.broadcast_object(folder.finished() if folder.rank == 0 else None, context.layout.world)
        wanted = [each for chosen in asked.sets for each in missing(loaded[chosen.name][1], chosen.samples, finished)]
        if finished:
            display.say(f"{len(finished):,} responses are there from before, {len(wanted):,} are missing")
        seconds = _draw(context, asked, folder, rewards, wanted, loaded) if wanted else {}
        if asked.entropy:
            add_entropies(context, folder)
        # The others have written their last files before the first rank reads all.
        collectives.gather_objects(None, context.layout.world)
        if folder.rank == 0:
            _write_results(context, asked, folder, rewards, loaded, settings, seconds)
    return asked.out


def _load(context: ModelContext, asked: Asked) -> Loaded:
    """The sets by name with their problems, all checked."""
    config, loaded = context.config, {}
    for chosen in asked.sets:
        for k in asked.pass_at:
            check_k(k, chosen.samples, f"--pass-at {k} of {chosen.name}: pass@{k}")
        found = load_set(chosen, config, context.hf_config, context.tokenizer, judged=asked.judged)
        loaded[chosen.name] = found, problems_of(chosen.name, found.source)
        count = len(found.source.held_out)
        context.display.say(f"{chosen.name} {chosen.data.source}: {count:,} prompts x {chosen.samples}")
    rollout.check_engine(config.rollout, ranks=context.layout.world.size())
    if asked.served is not None:
        check_served(config.rollout, asked.served)
    return loaded


def _pools(context: ModelContext, asked: Asked, stack: ExitStack) -> dict[str, RewardPool]:
    """The verifiers by set; sets whose rewards are the run's share one."""
    made: list[tuple[RewardsConfig, RewardPool]] = []
    found = {}
    for chosen in asked.sets:
        rewards = chosen.rewards or context.config.rewards
        pool = next((pool for config, pool in made if config == rewards), None)
        if pool is None:
            pool = stack.enter_context(RewardPool(rewards))
            made.append((rewards, pool))
        found[chosen.name] = pool
    return found


@contextmanager
def _claimed(context: ModelContext, asked: Asked, settings: dict[str, Any]) -> Iterator[EvaluationFolder]:
    """The folder, taken by the first rank for all; every rank raises the error if it cannot be."""
    rank, world = collectives.rank(context.layout.world), context.layout.world
    origin = Origin(
        model=str(context.config.model.path or ""),
        tokenizer=vocabulary_fingerprint(context.tokenizer),
        vocab_size=int(context.hf_config.vocab_size),
        temperature=context.config.rollout.temperature,
        written_by=f"megatron-fork {'evaluate' if asked.judged else 'generate'} {__version__}",
    )
    folder = EvaluationFolder(asked.out, rank, origin)
    lock: TextIO | None = None
    found: int | MegatronForkError = 0
    if rank == 0:
        try:
            lock = claim_folder(asked.out, settings)
            found = folder.next_number()
        except MegatronForkError as error:
            found = error
    found = collectives.broadcast_object(found, world)
    if isinstance(found, MegatronForkError):
        raise found
    folder.number = found
    with ExitStack() as stack:
        if lock is not None:
            stack.enter_context(closing(lock))
        yield folder


def _draw(
    context: ModelContext,
    asked: Asked,
    folder: EvaluationFolder,
    rewards: dict[str, RewardPool] | None,
    wanted: Sequence[Wanted],
    loaded: Loaded,
) -> dict[str, float]:
    """Draw all of `wanted`; returns seconds: waiting for the engine, and of the whole drawing."""
    sources = [found.source for found, _ in loaded.values()]
    longest = max(source.longest_prompt for source in sources)
    config, world = context.config.rollout, context.layout.world
    with closing(build_engine(context, folder=asked.out, longest_prompt=longest)) as engine:
        if asked.served is None:
            give_weights(context, load_policy(context), engine, sources[0])
        else:
            assert isinstance(engine, RemoteEngine)
            engine.adopt_weights(asked.served)
        mine = len(wanted) if engine.is_coordinated else -(-len(wanted) // collectives.size(world))
        # Short responses end first: the pace is known after a whole batch, or half of those that are drawn together.
        measured = min(mine, config.batch_size) if rollout.engine_kind(config.engine).draws_in_rounds else -(-mine // 2)
        with context.display.stage("responses", mine, measured=measured) as stage:
            began = time.monotonic()
            drawing = Drawing(
                engine,
                config,
                rewards,
                TokenTexts(context.tokenizer),
                world,
                context.config.seed,
                "evaluation" if asked.judged else "generated",
                folder.keep,
                lambda count: stage.advance({}, steps=count, every_seconds=10.0),
                asked.greedy,
            )
            drawing.draw(wanted)
    return {"engine": drawing.engine_seconds, "drawing": time.monotonic() - began}


def add_entropies(context: ModelContext, folder: EvaluationFolder) -> None:
    """Write each part file again with the entropies of its tokens, unless it has them; every rank calls it."""
    world = context.layout.world
    collectives.gather_objects(None, world)  # all files are written
    without = [path for path in folder.parts() if _lacks_entropy(path)] if folder.rank == 0 else []
    without = collectives.broadcast_object(without, world)
    scorer = PolicyScorer(context, load_policy(context)) if without else None
    for path in without:
        assert scorer is not None
        with ExitStack() as stack:
            writer = stack.enter_context(TraceWriter(path, folder.origin)) if folder.rank == 0 else None
            for part in open_traces(path).parts():
                scores = scorer.score(sequences_of(part, scorer))
                if writer is not None:
                    writer.add_part(part.with_flat(entropy=scores.entropy))


def _lacks_entropy(path: Path) -> bool:
    return any(part.table.column("entropy").null_count for part in open_traces(path).parts(["entropy"]))


def _write_results(
    context: ModelContext,
    asked: Asked,
    folder: EvaluationFolder,
    rewards: dict[str, RewardPool] | None,
    loaded: Loaded,
    settings: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    began = time.monotonic()
    parts = open_traces(*folder.parts()).parts(COLUMNS)
    outcomes = gather(
        parts, kinds={each.name: (each.rewards or context.config.rewards).verifier for each in asked.sets}
    )
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for chosen in asked.sets:
        if rewards is None:
            mine = [each for (name, _), each in outcomes.items() if name == chosen.name]
            lengths = [length for each in mine for length in each.tokens.values()]
            found[chosen.name] = {
                "problems": len(mine),
                "responses": len(lengths),
                "response_tokens": {"mean": sum(lengths) / max(1, len(lengths))},
                "cut": sum(each.cut for each in mine) / max(1, len(lengths)),
            }
            continue
        numbers, of_set = results_of_set(
            loaded[chosen.name][1],
            outcomes,
            rewards[chosen.name],
            samples=chosen.samples,
            ks=asked.pass_at or powers(chosen.samples),
            seed=context.config.seed,
        )
        found[chosen.name] = numbers
        rows += of_set
    results = {
        "version": 1,
        "sets": found,
        "interval": interval_in_words(),
        "tokenizer": folder.origin.tokenizer,
        "settings": settings,
        "provenance": {
            **provenance(str(context.layout)),
            "seconds": {**seconds, "counting": time.monotonic() - began},
        },
    }
    if rewards is None:
        folder.write("generation.json", json.dumps(results, indent=2) + "\n")
        context.display.say(f"traces {folder.path / 'traces'}")
        return
    folder.write("problems.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = markdown(results)
    folder.write("evaluation.md", table)
    folder.write(RESULTS, json.dumps(results, indent=2) + "\n")
    context.display.say(table.rstrip())
    context.display.say(f"evaluation {folder.path}")
