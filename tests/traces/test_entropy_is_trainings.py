"""The entropies in traces are those by which a step selected, and those that rescoring finds under the same weights.

On every kind of layout of two ranks, several sequences in a pass, at another temperature than 1, and where the step was
stopped and taken up again: what is written is what the statistics pass gave, bit for bit; another pass gives it to 1e-6.
"""

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from support.ranks import run_on_ranks
from support.trace_files import save_model

LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"tensor": 2},
    {"tensor": 2, "sequence": True},
    {"pipeline": 2},
    {"context": 2},
)
GROUPS, SAMPLES, UPDATES = 3, 4, 3


def cases() -> list[dict[str, Any]]:
    """Each layout with both policies that may select; the rest is drawn."""
    draw, made = random.Random(7), []
    for number, parallel in enumerate(LAYOUTS * 2):
        made.append({
            "parallel": parallel,
            "entropy_policy": "old" if number < len(LAYOUTS) else "current",
            "temperature": draw.choice((0.6, 0.8, 1.3)),
            "micro_batch": draw.choice((1, 60, 200)),
            "statistics_batch": draw.choice((60, 200, 4096)),
            "stops_after": draw.randrange(UPDATES) if number % 3 else None,
        })  # fmt: skip
    return made


def traced(place: str, asked: list[dict[str, Any]]) -> list[tuple[float, float, float, float]]:
    """Of each case how far the file is from what selected, a rescoring's entropies and log-probs, the engine's log-probs."""
    return [_traced(Path(place), Path(place, str(number)), **case) for number, case in enumerate(asked)]


def _traced(
    place: Path,
    folder: Path,
    *,
    parallel: dict[str, Any],
    entropy_policy: str,
    temperature: float,
    micro_batch: int,
    statistics_batch: int,
    stops_after: int | None,
) -> tuple[float, float, float, float]:
    import torch
    import torch.distributed as dist
    from support.commands import trace_rows
    from transformers import AutoConfig

    from megatron_fork import objective, selection
    from megatron_fork.clock import Clock
    from megatron_fork.conversion import load_initial
    from megatron_fork.data import DataConfig, load_prompts
    from megatron_fork.distributed import ParallelConfig, collectives, device, parallel_layout
    from megatron_fork.errors import StopRequested
    from megatron_fork.experience import Batch, Trajectory
    from megatron_fork.models import ModelConfig
    from megatron_fork.policy import (
        Learner,
        LearningRates,
        OptimizerConfig,
        Policy,
        PolicyConfig,
        TrainedModels,
        split_into_mini_batches,
    )
    from megatron_fork.rollout import EmbeddedEngine, PolicyWeights, Request, RolloutCounts
    from megatron_fork.run import Display, PartialStep, rescored, scorer, step_files
    from megatron_fork.run.traces import RowsOf, trained_responses
    from megatron_fork.traces import Origin, open_traces, vocabulary_fingerprint, write_traces

    seen: dict[int, float] = {}
    source, goal = load_prompts(DataConfig(), None), objective.ObjectiveConfig()
    hf_config = AutoConfig.from_pretrained(place / "model")
    is_first = dist.get_rank() == 0

    def model_of(update: int) -> ModelConfig:
        return ModelConfig(path=str(folder / f"update-{update}"))

    class Watched(Learner):
        """Notes the first entropies that each update selects by, and keeps the weights that gave them."""

        def select(self, share: Batch, number: int) -> selection.Selection:
            assert share.entropy_t is not None
            found = collectives.gather_objects((share.token_id_t.tolist(), share.entropy_t.tolist()), self._group)
            for ids, entropies in found:
                for token, entropy in zip(ids, entropies, strict=True):
                    seen.setdefault(token, entropy)
            return super().select(share, number)

        def update(self, share: Batch, chosen: selection.Selection, number: int, **rate: Any) -> Any:
            weights = {name: tensor.clone() for name, tensor in PolicyWeights(self.policy)}
            if is_first:
                save_model(folder / f"update-{number % UPDATES}", weights=weights)
            return super().update(share, chosen, number, **rate)

    with parallel_layout(ParallelConfig(**parallel)) as layout:
        policy = Policy(
            PolicyConfig(tokens_per_micro_batch=micro_batch, tokens_per_statistics_batch=statistics_batch),
            OptimizerConfig(learning_rate=1e-2),
            hf_config,
            layout,
            temperature=temperature,
        )
        load_initial(policy.model, ModelConfig(path=str(place / "model")), seed=0)
        policy.weights_changed()
        engine = EmbeddedEngine(
            hf_config, stop_tokens=(1,), pad_token=0, batch_size=8, device=device(), dtype=torch.float32
        )
        engine.update_weights(PolicyWeights(policy), 0)
        prompts = [source.training[number // SAMPLES] for number in range(GROUPS * SAMPLES)]
        asked = [Request(n, prompt.tokens, n, temperature, 5 + 2 * n) for n, prompt in enumerate(prompts)]
        drawn = sorted(engine.generate(asked), key=lambda each: each.number)
        trajectories = [
            Trajectory(
                *(each.number, prompt, each.tokens, each.logprob, each.finish_reason, 0),
                advantage=[1.5, -0.5, 0.5, -1.5][each.number % SAMPLES],
            )
            for each, prompt in zip(drawn, prompts, strict=True)
        ]
        settings = selection.SelectionConfig(entropy_policy=entropy_policy)  # type: ignore[arg-type]
        learner = Watched(TrainedModels(policy), settings, goal, mismatch_limit=1e-3)

        def learn(step: PartialStep, updates: int) -> None:
            asked = iter(range(updates))

            def stop_point() -> None:
                if next(asked, None) is None:
                    raise StopRequested

            with suppress(StopRequested):
                learner.step(
                    split_into_mini_batches(step.trajectories or [], 1, group_size=SAMPLES, seed=5),
                    step=1,
                    rates=LearningRates(1e-2),
                    clock=Clock(),
                    result=step.result,
                    stop_point=stop_point,
                )

        step = PartialStep(RolloutCounts(drawn=len(trajectories)), trajectories, {"rollout/pass_rate": 0.5})
        if stops_after is not None:
            learn(step, stops_after)
            (folder / "stopped").mkdir(parents=True, exist_ok=True)
            dist.barrier()
            step_files.write_step(folder / "stopped", step, layout)
            dist.barrier()
            record, made, begun = step.record(), step.result.updates, step.result.metrics
            step = PartialStep(step.counts, None, step.rollout_metrics)
            step.result.updates, step.result.metrics = made, begun
            step_files.read_step(folder / "stopped", record, step)
        learn(step, UPDATES)
        rows = RowsOf(source, "trained", set="training", step=1, samples=SAMPLES)
        responses = trained_responses(trajectories, step.result.shares, rows, count=None, seed=1, group=layout.data)
        fingerprint = vocabulary_fingerprint(source.tokenizer)
        if is_first:
            origin = Origin(tokenizer=fingerprint, temperature=temperature, written_by="tests")
            write_traces(folder / "traces.parquet", responses, origin)
        for _ in responses:
            pass
        dist.barrier()

    files = open_traces(folder / "traces.parquet")
    own, expected = trace_rows(folder / "traces.parquet"), dict(seen)
    written = {
        row["number"] * (1 << 24) + place: entropy for row in own for place, entropy in enumerate(row["entropy"])
    }
    assert written.keys() == expected.keys() and len(own) == GROUPS * SAMPLES
    as_selected = max(abs(written[token] - expected[token]) for token in written)
    engines = max(apart(row["logprob"], each.rollout_logprob) for row, each in zip(own, trajectories, strict=True))
    order = split_into_mini_batches(trajectories, 1, group_size=SAMPLES, seed=5)
    update_of = {each.number: index for index, batch in enumerate(order) for each in batch.sequences}
    words = [f"parallel.{name}={value}".lower() for name, value in parallel.items()]
    words.append(f"policy.tokens_per_statistics_batch={statistics_batch}")
    entropies, logprobs = 0.0, 0.0
    with scorer(
        Path(str(model_of(0).path)), Display(speaks=False), overrides=words, temperature=files.temperature
    ) as scores:
        for update in range(UPDATES) if entropy_policy == "current" else (0,):
            scores.load(model_of(update))
            found = [row for part in rescored(files, scores) for row in part.table.to_pylist()]
            for row, other in zip(own, found if is_first else (), strict=is_first):
                if update == 0:
                    logprobs = max(logprobs, apart(row["logprob"], other["logprob"]))
                if entropy_policy == "old" or update_of[row["number"]] == update:
                    entropies = max(entropies, apart(row["entropy"], other["entropy"]))
    return as_selected, entropies, logprobs, engines


def apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest distance, of values above 1 nat as a part of them: float32 does not hold 8 nats to 1e-6."""
    first, second = np.array(ours), np.array(theirs)
    return float((np.abs(first - second) / np.maximum(1.0, np.abs(first))).max())


def test_the_entropies_in_traces_are_the_training_values(tmp_path: Path) -> None:
    save_model(tmp_path / "model", scale=0.8)
    asked = cases()
    found = run_on_ranks(traced, 2, str(tmp_path), asked, time_limit=400.0)[0]
    for case, (as_selected, entropies, logprobs, engines) in zip(asked, found, strict=True):
        print(case, as_selected, entropies, logprobs, engines)
    for case, (as_selected, entropies, logprobs, engines) in zip(asked, found, strict=True):
        assert as_selected == 0.0, case
        assert entropies <= 1e-6 and logprobs <= 1e-6, (case, entropies, logprobs)
        assert engines <= 1e-5, (case, engines)
    assert {case["stops_after"] for case in asked} > {None, 1}
