"""Prefixes of every length come up alike, weights are 1 over the chance of a token, and their mean over all draws is 1."""

import math
from collections import Counter
from itertools import count, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import run_on_ranks
from support.weighed import choose, mini_batch

from megatron_fork.selection import SelectionConfig
from megatron_fork.selection.config import Nat


def config(shortest: float, **options: Any) -> SelectionConfig:
    return SelectionConfig(tokens="all", weights=["nat"], nat=Nat(shortest=shortest), **options)


@given(seed=st.integers(0, 9999), step=st.integers(0, 99), shortest=st.sampled_from([1e-3, 0.1, 0.5, 0.7, 1.0]))
@settings(max_examples=60, deadline=None)
def test_its_formula(seed: int, step: int, shortest: float) -> None:
    batch = mini_batch(seed)
    found = choose(batch, config(shortest), step=step)
    assert torch.equal(found.counted, batch["candidate"])
    for response in batch["sequence"].unique().tolist():
        mine = batch["sequence"] == response
        total, kept = int(mine.sum()), int(found.mask[mine].sum())
        if not batch["candidate"][mine].all():
            assert not kept
            continue
        least = max(1, math.ceil(round(shortest * total, 9)))
        assert least <= kept <= total and found.mask[mine][:kept].all()
        lengths = range(least, total + 1)
        chance = [sum(length > place for length in lengths) / len(lengths) for place in range(total)]
        expected = [1.0 / each if place < kept else 0.0 for place, each in enumerate(chance)]
        assert found.weight[mine].tolist() == pytest.approx(expected, rel=1e-6)


def test_every_length_comes_up_alike_and_anew_for_each_response_and_update() -> None:
    one = torch.arange(5)
    batch = {
        "entropy": torch.zeros(5),
        "candidate": torch.ones(5, dtype=torch.bool),
        "sequence": one * 0,
        "response": one * 0,
        "place": one,
    }
    for changed in ("response", "step", "seed"):
        drawn = Counter()
        for number in range(600):
            batch["response"] = one * 0 + (number if changed == "response" else 0)
            found = choose(
                batch,
                config(0.4, seed=number if changed == "seed" else 0),
                step=number if changed == "step" else 0,
            )
            drawn[found.selected] += 1
        assert set(drawn) == {2, 3, 4, 5}
        assert all(abs(times - 150) < 5 * math.sqrt(600 * 0.25 * 0.75) for times in drawn.values())


RESPONSES = (3, 4)


def gradients(selects: str, options: dict[str, Any], objective_options: dict[str, Any]) -> dict[str, Any]:
    """The mean gradient over every pair of prefixes, that without a draw, and the tokens that the model read in each."""
    from support.layouts import VOCABULARY, gradients_of, model_config
    from transformers import AutoModelForCausalLM

    from megatron_fork import objective, policy
    from megatron_fork.conversion import load_weights
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.experience import Batch, Prompt, Trajectory, logprob_array, token_array

    generator = torch.Generator().manual_seed(2)

    def drawn(size: int) -> list[int]:
        return torch.randint(VOCABULARY, (size,), generator=generator).tolist()

    batch = Batch.of_trajectories(
        [
            Trajectory(
                number,
                Prompt(number, "", tuple(drawn(3)), ""),
                token_array(drawn(length)),
                rollout_logprob=logprob_array([-2.0] * length),
                finish_reason="stop",
                weight_version=0,
                advantage=(-1.0) ** number,
            )
            for number, length in enumerate(RESPONSES)
        ]
    )
    hf_config = model_config(tied=True, experts=False)
    torch.manual_seed(11)
    weights = AutoModelForCausalLM.from_config(hf_config).state_dict()
    with parallel_layout(ParallelConfig()) as layout:
        model = policy.Policy(policy.PolicyConfig(), policy.OptimizerConfig(clip_gradient=0.0), hf_config, layout)
        load_weights(model.model, weights)
        model.weights_changed()
        now = model.statistics(batch)
        share = batch.with_columns(
            old_logprob_t=now.logprob - 0.1,
            logprob_t=now.logprob,
            entropy_t=now.entropy,
            reference_logprob_t=now.logprob - 1,
        )
        read: list[int] = []
        backward = model.backward

        def counted(cut: Any, *rest: Any) -> Any:
            read.append(sum(sequence.length for sequence in cut.sequences))
            return backward(cut, *rest)

        model.backward = counted  # type: ignore[method-assign]

        def gradient(selection: SelectionConfig, step: int) -> tuple[torch.Tensor, Any]:
            goal = objective.ObjectiveConfig(**objective_options)
            learner = policy.Learner(
                policy.TrainedModels(model, reference=model), selection, goal, mismatch_limit=100.0
            )
            chosen = learner.select(share, step)
            learner.gradient(share, chosen, step)
            return torch.cat([each.flatten() for each in gradients_of(model).values()]), chosen

        whole, _ = gradient(SelectionConfig(tokens=selects, **options), 0)
        found: dict[tuple[int, ...], torch.Tensor] = {}
        cuts = list(product(*(range(1, length + 1) for length in RESPONSES)))
        sizes = {}
        every = SelectionConfig(tokens="all", weights=["nat"], nat=Nat(shortest=1e-3))
        for step in count():
            learner = policy.Learner(
                policy.TrainedModels(model), every, objective.ObjectiveConfig(), mismatch_limit=9.0
            )
            prefix = tuple(int(part.sum()) for part in learner.select(share, step).mask.split(list(RESPONSES)))
            if prefix not in found:
                own = SelectionConfig(tokens=selects, weights=["nat"], nat=Nat(shortest=1e-3), **options)
                found[prefix], _ = gradient(own, step)
                sizes[prefix] = read[-1]
            if len(found) == len(cuts):
                break
    return {"mean": torch.stack(list(found.values())).mean(0), "whole": whole, "whole_read": read[0], "read": sizes}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ppo": ("all", {}, {}),
    "the paper's half, over responses": ("top", {"ratio": 0.5}, {"average": "sequence"}),
    "cispo over all candidates, with KL, bonus and correction": (
        "all",
        {},
        {"loss": "cispo", "denominator": "all", "kl_coef": 0.1, "entropy_coef": 0.1, "correction": "tis"},
    ),
    "kl_cov": ("all", {}, {"loss": "kl_cov", "cov_share": 0.3, "average": "constant", "constant_length": 4}),
}


def all_gradients() -> list[dict[str, Any]]:
    return [gradients(*case) for case in CASES.values()]


@pytest.mark.slow
def test_the_expected_gradient_is_that_of_whole_responses_and_the_model_reads_less() -> None:
    """By enumeration: every pair of prefixes of two responses, through the learner and the model."""
    for name, found in zip(CASES, run_on_ranks(all_gradients, 1)[0], strict=True):
        apart = (found["mean"] - found["whole"]).norm()
        assert found["whole"].norm() > 0.0 and apart <= 1e-5 * found["whole"].norm(), f"{name}: {apart}"
        assert found["whole_read"] == sum(3 + length - 1 for length in RESPONSES)
        assert len(found["read"]) == math.prod(RESPONSES)
        for prefix, tokens in found["read"].items():
            assert tokens <= sum(3 + length - 1 for length in prefix)
            if name == "ppo":  # every token of a prefix is trained
                assert tokens == sum(3 + length - 1 for length in prefix)
