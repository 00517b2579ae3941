"""A run of one step with random weights: what `train` would build and call, in a folder that is removed afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_fork import checkpoint, distributed, rollout, run
from megatron_fork.clock import Clock
from megatron_fork.config import RunConfig
from megatron_fork.distributed import collectives
from megatron_fork.errors import PreflightError, size
from megatron_fork.policy import LearningRates, Network, TrainedModels, split_into_mini_batches
from megatron_fork.preflight.findings import Finding
from megatron_fork.preflight.made_up import made_up_rollouts

_SAMPLES = 4
# What every step has; other metrics are NaN where they are not measured.
_FINITE = ("loss", "gradient_norm", "entropy/mean")
# Of two models, in nats at some of a few tokens; rounding of bf16 stays far below it.
_OTHER_WEIGHTS = 0.5


@dataclass(frozen=True)
class Rehearsal:
    """A recipe to rehearse, and what was found of it."""

    config: RunConfig
    found: run.Checked
    scale: str
    """Its model in words."""
    is_own_size: bool
    """Whether that is the recipe's own model, and not a small one."""

    def in_folder(self, folder: Path) -> RunConfig:
        """The recipe for one step without warm start, whose run folder is `folder`."""
        config = self.config
        kept = replace(
            config.run, folder=str(folder), overwrite=False, wandb=None, tensorboard=False, prometheus_port=0
        )
        return replace(config, run=kept, sft=replace(config.sft, steps=0))


def one_step(rehearsal: Rehearsal, folder: Path, *, continues: bool) -> Iterator[Finding]:
    """A step on made-up rollouts; with `continues` also the engine in these processes, and a checkpoint.

    Without `continues` nothing but the networks is allocated, and their weights are Megatron's own random ones.
    """
    with run.prepare(rehearsal.in_folder(folder), run.Display(speaks=False), found=rehearsal.found) as context:
        began = time.perf_counter()
        if continues:
            state, networks = run.start(context)
        else:
            torch.manual_seed(context.config.seed)
            networks = run.build_models(context, None)
        yield Finding(
            "networks", f"{rehearsal.scale}, {context.layout}", f"{time.perf_counter() - began:.1f} s, random weights"
        )
        yield _step(context, networks)
        if not continues:
            return
        if not rollout.engine_kind(context.config.rollout.engine).has_servers:
            yield _engine(context, networks, is_own_size=rehearsal.is_own_size)
        state.step = 1
        yield _checkpoint(context, networks, state)


def _step(context: run.RunContext, networks: TrainedModels) -> Finding:
    """Statistics, selection and updates; losses, gradients and entropies must be finite."""
    config, clock = context.config, Clock()
    samples = max(2, min(_SAMPLES, config.rollout.samples))
    groups = 2 * max(1, context.layout.data.size() // samples)
    batches = split_into_mini_batches(
        made_up_rollouts(context, groups=groups, samples=samples), groups // 2, group_size=samples, seed=config.seed
    )
    # Nobody drew these tokens: that their log-probs are not the policy's is no fault. An update that cannot be applied is one.
    rollout_config = replace(config.rollout, mismatch_limit=math.inf)
    strict = replace(config, rollout=rollout_config, train=replace(config.train, max_skipped_updates=0))
    learner = run.build_learner(replace(context, config=strict), networks, run.RunState())
    rates = LearningRates(config.optimizer.learning_rate, config.critic.optimizer.learning_rate)
    result = learner.step(batches, step=1, rates=rates, clock=clock, stop_point=context.stop_point)
    numbers = [*result.metrics.items(), *(each for update in result.updates for each in update.items())]
    odd = sorted({f"{name}={value}" for name, value in numbers if name.endswith(_FINITE) and not math.isfinite(value)})
    if odd:
        raise PreflightError(
            f"a step with random weights gives {', '.join(odd[:4])}",
            hint="see objective.* and policy.precision: a run with these settings computes no numbers either",
        )
    seconds = ", ".join(f"{name.removeprefix('time/')} {value:.2f} s" for name, value in clock.laps().items())
    memory = f"; GPU memory up to {size(torch.cuda.max_memory_allocated())}" if torch.cuda.is_available() else ""
    return Finding("one step", f"{len(batches)} updates, all finite", seconds + memory)


def _engine(context: run.RunContext, networks: TrainedModels, *, is_own_size: bool) -> Finding:
    """The engine in these processes gets the weights and draws a few responses, whose log-probs are compared.

    Rounding differs between a small model and the recipe's: only what is more than rounding is a fault of the small one.
    """
    config, world, began = context.config.rollout, context.layout.world, time.perf_counter()
    with closing(run.build_engine(context)) as engine:
        run.sync_weights(context, networks.policy, engine, 1)
        synchronised = time.perf_counter() - began
        asked = context.source.draw(2, start=0, seed=context.config.seed)
        most = min(16, config.max_response_tokens)
        requests = [
            rollout.Request(number, prompt.tokens, number, config.temperature, most)
            for number, prompt in enumerate(asked)
        ]
        drawn = list(engine.generate(requests))
        engine.rest()
    of_ranks = collectives.gather_objects(drawn, world)
    answers = {f"rank {rank}": completions for rank, completions in enumerate(of_ranks) if completions}
    worst = max(rollout.compare(networks.policy, asked, answers).values())
    is_far = not worst <= config.mismatch_limit
    if is_far and (is_own_size or not worst <= _OTHER_WEIGHTS):
        raise PreflightError(
            f"log-probs of rollout.engine={config.engine} differ from the policy's by {worst:.3g} nats, more than "
            f"rollout.mismatch_limit={config.mismatch_limit}",
            hint="a run would stop at its first step; raise the limit for bf16 engines",
        )
    limit = f"; more than rollout.mismatch_limit={config.mismatch_limit}, which the recipe's own model may meet"
    return Finding(
        config.engine,
        f"has the policy's weights: log-probs within {worst:.2g} nats",
        f"sync {synchronised:.2f} s{limit if is_far else ''}",
        "note" if is_far else "ok",
    )


def _checkpoint(context: run.RunContext, networks: TrainedModels, state: run.RunState) -> Finding:
    """Write one, and read it into networks that are built for it: every tensor must have the same bits."""
    began = time.perf_counter()
    with context.stop.remembered():
        run.save(context, networks, state)
        context.checkpoints.wait()
    written = time.perf_counter() - began
    began = time.perf_counter()
    saved = context.checkpoints.latest()
    if saved is None:
        raise PreflightError(
            f"the checkpoint written to {context.checkpoints.root} is not found again", hint="choose another run.folder"
        )
    again = run.build_models(context, None)
    checkpoint.load_training_state(saved, again.trained)
    read = time.perf_counter() - began
    pairs = [
        pair
        for name in networks.trained
        for pair in zip(tensors_of(networks.trained[name]), tensors_of(again.trained[name]), strict=True)
    ]
    differ = sum(not torch.equal(one, other) for one, other in pairs)
    differ = int(collectives.all_reduce_sum(torch.tensor(differ, device=distributed.device()), context.layout.world))
    if differ:
        raise PreflightError(
            f"{differ} tensors of a checkpoint in {context.checkpoints.root} are read back with other values",
            hint="have that file system checked, or choose another run.folder",
        )
    held = sum(file.stat().st_size for file in saved.folder.rglob("*") if file.is_file())
    return Finding(
        "checkpoint",
        f"{size(held)} written and read back, {len(pairs)} tensors the same bit for bit",
        f"written {written:.2f} s, read {read:.2f} s",
    )


def tensors_of(network: Network) -> Iterator[Tensor]:
    """This rank's weights, main parameters and moments, in an order that the layout decides."""
    for chunk in network.model:
        yield from (value.detach() for value in chunk.parameters())
    yield from checkpoint.optimizer_tensors(network.optimizer)
