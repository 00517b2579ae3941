"""Every weighting of the chosen tokens gives the same weights and gradients on two ranks and under another split (1e-5).

Old log-probs are off by what a few updates would make, so that ratios leave 1; each weighting meets a loss, a correction, a
penalty or a denominator of its own.
"""

from typing import Any

import pytest
import torch
from support.layouts import gradient_apart, gradients_of, model_config, trajectories
from support.ranks import run_on_ranks
from transformers import AutoModelForCausalLM

from megatron_fork.selection import WEIGHTINGS

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stapo": ({"tokens": "all", "stapo": {"probability": 0.05}}, {"loss": "kl_cov", "cov_share": 0.1}),
    "surprisal_band": ({"tokens": "top"}, {"loss": "gspo", "average": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}),
    "m2po": ({"tokens": "all", "m2po": {"moment": 1e-4}}, {"clip_low": 0.99, "clip_high": 100.0, "correction": "tis"}),
    "quadrants": (
        {"tokens": "all", "quadrants": {"positive_high": 2.0, "negative_low": 0.25}},
        {"denominator": "all", "entropy_coef": 0.01},
    ),
    "soft_entropy": ({"tokens": "random", "scope": "sequence"}, {"kl_coef": 0.1, "correction": "icepop"}),
    "nat": ({"tokens": "all"}, {"loss": "cispo", "average": "constant", "constant_length": 20, "kl_coef": 0.1}),
}
LAYOUTS: dict[str, tuple[int, dict[str, Any], int]] = {
    "data": (2, {}, 70),
    "context": (2, {"context": 2}, 70),
    "a sequence a micro-batch": (1, {}, 1),
}


def results(parallel: dict[str, Any], micro_batch: int) -> dict[str, Any]:
    """Of each case what the selection says, its columns in the order of token ids, and the gradient."""
    from megatron_fork import objective, selection
    from megatron_fork.conversion import load_weights
    from megatron_fork.distributed import ParallelConfig, collectives, parallel_layout
    from megatron_fork.experience import Batch
    from megatron_fork.policy import Learner, OptimizerConfig, Policy, PolicyConfig, TrainedModels
    from megatron_fork.selection import config as room

    settings = {"stapo": room.Stapo, "m2po": room.SecondMoment, "quadrants": room.Quadrants}
    hf_config = model_config(tied=False, experts=False)
    torch.manual_seed(11)
    weights = AutoModelForCausalLM.from_config(hf_config).state_dict()
    found = {}
    with parallel_layout(ParallelConfig(**parallel)) as layout:
        config = PolicyConfig(tokens_per_micro_batch=micro_batch, tokens_per_statistics_batch=90)
        policy = Policy(config, OptimizerConfig(clip_gradient=0.0), hf_config, layout, temperature=0.8)
        load_weights(policy.model, weights)
        policy.weights_changed()
        share = policy.share(Batch.of_trajectories(trajectories()))
        now = policy.statistics(share)
        moved = 0.3 * (share.token_id_t % 1009).double().sin().float()
        share = share.with_columns(
            logprob_t=now.logprob,
            old_logprob_t=now.logprob + moved,
            reference_logprob_t=now.logprob - moved.square(),
            entropy_t=now.entropy,
        )
        for name, (chosen, goal) in CASES.items():
            fields = {key: settings[key](**value) if key in settings else value for key, value in chosen.items()}
            learner = Learner(
                TrainedModels(policy, reference=policy),
                selection.SelectionConfig(ratio=0.5, weights=[name], **fields),
                objective.ObjectiveConfig(**goal),
                mismatch_limit=100.0,
            )
            made = learner.select(share, 3)
            norm = learner.gradient(share, made, 3)
            counted = made.mask if made.counted is None else made.counted
            everyone = collectives.gather_objects((share.token_id_t, made.mask, counted, made.weight), layout.data)
            token_id, *columns = (torch.cat(column) for column in zip(*everyone, strict=True))
            found[name] = {
                "numbers": {"norm": norm, "selected": made.selected, **made.measures},
                "columns": [column[token_id.argsort()] for column in columns],
                "gradients": gradients_of(policy),
            }
    return found


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return run_on_ranks(results, 1, {}, 70)[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_equal_one_rank(layout: str, reference: dict[str, Any]) -> None:
    ranks, parallel, micro_batch = LAYOUTS[layout]
    for result in run_on_ranks(results, ranks, parallel, micro_batch):
        for name, ours in result.items():
            theirs = reference[name]
            assert ours["numbers"] == pytest.approx(theirs["numbers"], rel=1e-5), name
            for column, wanted in zip(ours["columns"], theirs["columns"], strict=True):
                torch.testing.assert_close(column, wanted, rtol=1e-5, atol=0.0)
            apart = gradient_apart(ours, theirs)
            assert apart <= 1e-5, f"{name}: gradients differ by {apart:.2e}"


@pytest.mark.slow
def test_every_weighting_took_part(reference: dict[str, Any]) -> None:
    """Else equality would prove nothing."""
    assert set(CASES) == set(WEIGHTINGS)
    last = {name: found["numbers"] for name, found in reference.items()}
    for name in ("stapo", "surprisal_band", "m2po", "nat"):
        assert 0.0 < last[name][f"{name}_kept"] < 1.0, name
    assert last["m2po"]["m2po_moment"] > 1e-4 >= last["m2po"]["m2po_moment_kept"]
    assert last["quadrants"]["quadrants_kept"] < 1.0 and last["nat"]["nat_read"] < 0.9
    assert last["soft_entropy"]["soft_entropy_slope"] != 0.0
