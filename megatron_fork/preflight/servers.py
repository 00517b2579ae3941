"""The recipe's servers: what each says and draws with the weights that it has, and, if asked for, one real weight sync."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from megatron_fork import run
from megatron_fork.config import RunConfig
from megatron_fork.distributed import rank
from megatron_fork.errors import masked
from megatron_fork.preflight.findings import Finding
from megatron_fork.preflight.rehearsal import Rehearsal
from megatron_fork.rollout import ask_servers


def servers(config: RunConfig, found: run.Checked, *, seconds: float) -> Iterator[Finding]:
    """A few tokens from each, drawn beside whatever it works on; another run's weights are not touched."""
    if rank() != 0:
        return
    answers = ask_servers(
        config.rollout,
        vocabulary=found.hf_config.vocab_size,
        prompt=found.source.training[0].tokens,
        stop_tokens=found.stop_tokens,
        seconds=seconds,
    )
    for url, answer in answers.items():
        name = f"tokens of {masked(url)}"
        if not answer.is_up:
            waits = f"a run waits up to {config.rollout.remote.patience_seconds:g} seconds for it"
            yield Finding(name, "not asked: it does not answer", f"{waits}; {answer.fault}", "note")
        elif answer.fault:
            hint = f"start it with scripts/serve_engine.sh, for rollout.engine={config.rollout.engine} and the recipe's model"
            yield Finding(name, answer.fault, hint, "fix")
        else:
            drawn = ", ".join(f"{value:.3g}" for value in answer.logprob)
            workers = f"{answer.workers} worker" + ("s" if answer.workers > 1 else "")
            yield Finding(name, f"{len(answer.tokens)}, log-probs {drawn}", f"{workers}, its weights: {answer.label}")


def weight_sync(rehearsal: Rehearsal, folder: Path, *, seconds: float) -> Iterator[Finding]:
    """The recipe's own first weights at its servers, and the log-prob probe of a run; another run's weights are gone then."""
    began = time.perf_counter()
    remote = replace(rehearsal.config.rollout.remote, patience_seconds=seconds)
    config = replace(rehearsal.config, rollout=replace(rehearsal.config.rollout, remote=remote))
    of_servers = replace(rehearsal, config=config)
    with run.prepare(of_servers.in_folder(folder), run.Display(speaks=False), found=rehearsal.found) as context:
        _, networks = run.start(context)
        loaded = time.perf_counter()
        with closing(run.build_engine(context)) as engine:
            run.sync_weights(context, networks.policy, engine, 0)
    count = len(config.rollout.servers)
    yield Finding(
        "weight sync",
        f"{count} server{'s' if count > 1 else ''} by {config.rollout.sync}, log-probs within rollout.probe_limit",
        f"{time.perf_counter() - loaded:.1f} s, after {loaded - began:.1f} s to load the weights",
    )
