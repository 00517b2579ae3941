"""An update whose loss or gradient is not finite never happened: on every rank, to weights, optimizer and counters alike."""

import math
from typing import Any

import pytest
import torch
from support.layouts import model_config, trajectories
from support.ranks import run_on_ranks

from megatron_fork.errors import GradientError
from megatron_fork.policy import SkippedUpdates, Update
from megatron_fork.policy.skipped_updates import in_ranges
from megatron_fork.policy.update_metrics import over_updates

# Layout, fields of the optimizer, precision; the faults are in one data rank's share where there are two.
CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "fp32"),
    ({}, {"distributed": True}, "bf16"),
    ({}, {"distributed": True, "overlap_gradients": True, "overlap_parameters": True}, "fp32"),
    ({"tensor": 2}, {"clip_gradient": 0.0}, "bf16"),
    ({"pipeline": 2}, {}, "fp32"),
]
FAULTS = ("loss", "gradient", "norm")


def with_and_without(alone: bool) -> list[dict[str, Any]]:
    return [_with_and_without(*case) for case in (CASES[:2] if alone else CASES)]


def _with_and_without(parallel: dict[str, Any], adam: dict[str, Any], precision: str) -> dict[str, Any]:
    """Weights and optimizer after [0, 1, 2], in which update 1 is faulty in turn by each of FAULTS, and after [0, 2]."""
    from megatron_fork.conversion import load_initial
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.models import ModelConfig
    from megatron_fork.objective import PolicyLoss
    from megatron_fork.policy import Critic, OptimizerConfig, Policy, PolicyConfig, split_into_mini_batches

    batches = split_into_mini_batches(trajectories(), 2, group_size=4, seed=5)
    bad_number = batches[1].sequences[0].number
    config, optimizer = PolicyConfig(precision=precision, tokens_per_micro_batch=70), OptimizerConfig(1e-3, **adam)  # type: ignore[arg-type]

    with parallel_layout(ParallelConfig(**parallel)) as layout:

        def after(kind: type[Policy] | type[Critic], steps: dict[int, str | None]) -> tuple[Any, list[Update]]:
            network = kind(config, optimizer, model_config(tied=True, experts=False), layout)
            load_initial(network.model, ModelConfig(hf_config={"model_type": "qwen3"}), seed=11)
            network.weights_changed()
            updates = []
            for index, fault in steps.items():
                batch = network.share(batches[index])
                bad_t = torch.zeros(batch.response_tokens, dtype=torch.bool)
                if fault:
                    bad_t = torch.tensor([each.number == bad_number for each in batch.sequences])[batch.sequence_t]

                def loss_of(
                    values: Any, places: torch.Tensor, bad_t: torch.Tensor = bad_t, fault: str | None = fault
                ) -> PolicyLoss:
                    column = values if kind is Critic else values.logprob
                    bad = bad_t[places].to(column.device)
                    loss = column.square().sum() / 100
                    if fault == "loss":
                        loss = loss + torch.where(bad, column * math.nan, 0.0).sum()
                    elif fault == "gradient":  # finite itself
                        loss = loss + torch.where(bad, (column * 0).abs().sqrt(), 0.0).sum()
                    elif fault == "norm":  # of gradients that are finite, and their squares are not
                        loss = loss + torch.where(bad, column * 1e30, 0.0).sum()
                    return PolicyLoss(loss, {})

                everything = torch.ones(batch.response_tokens, dtype=torch.bool)
                updates.append(network.update(batch, everything, loss_of, learning_rate=1e-3 * (index + 1)))
            states = [
                value
                for each in network.optimizer.chained_optimizers
                for state in each.optimizer.state.values()
                for value in state.values()
            ]
            groups = network.optimizer.param_groups
            held = [each for group in groups for each in group["params"]]
            weights = [each for chunk in network.model for each in chunk.parameters()]
            tensors = [torch.as_tensor(each).detach().clone() for each in (*weights, *held, *states)]
            return (tensors, [group["lr"] for group in groups]), updates

        found: dict[str, Any] = {}
        for kind in (Policy, Critic):
            never, _ = after(kind, {0: None, 2: None})
            for fault in FAULTS:
                skipped, updates = after(kind, {0: None, 1: fault, 2: None})
                same = len(skipped[0]) == len(never[0]) and all(map(torch.equal, skipped[0], never[0]))
                applied = [each.is_applied for each in updates]
                found[f"{kind.__name__} {fault}"] = updates[1], applied, same and skipped[1] == never[1]
        return {"bad": bad_number, "all": sorted(each.number for each in batches[1].sequences), "found": found}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_skipped_update_never_happened(ranks: int) -> None:
    for results in zip(*run_on_ranks(with_and_without, ranks, ranks == 1), strict=True):
        for result in results:
            assert len(result["found"]) == 2 * len(FAULTS)
            for name, (update, applied, same) in result["found"].items():
                assert applied == [True, False, True], name
                assert same, name
                assert not (math.isfinite(update.loss) and math.isfinite(update.gradient_norm)), name
                if name.endswith("loss"):
                    assert result["bad"] in update.suspects and len(update.suspects) < len(result["all"]), name
                else:
                    assert list(update.suspects) == result["all"], name
            assert repr(result) == repr(results[0])


def test_the_limit_counts_updates_in_a_row_of_each_network() -> None:
    said: list[str] = []
    skips = SkippedUpdates(2, {"critic": 1}, said.append)
    good, bad = Update(0.5, 1.0, 1e-3, {}), Update(math.nan, math.inf, 0.0, {}, is_applied=False, suspects=(1, 2, 3, 7))
    for update in (bad, bad, good, bad, bad):
        skips.note("policy", update, "step 3, update 1 of 4")
        skips.check()
    assert skips.in_a_row == {"critic": 1, "policy": 2} and len(said) == 4
    assert said[0] == (
        "step 3, update 1 of 4: not applied to the policy: its loss is nan, its gradient norm inf; "
        "trajectories 1-3, 7 of the step"
    )
    skips.note("policy", bad, "step 4, update 1 of 4")
    with pytest.raises(GradientError, match=r"3 updates in a row of the policy.*train\.max_skipped_updates=2"):
        skips.check()


def test_many_trajectories_are_named_in_few_words() -> None:
    assert in_ranges(()) == "" and in_ranges((5,)) == "5"
    assert in_ranges(tuple(range(0, 100, 2))) == "0, 2, 4, 6, 8, 10, 12, 14 and 42 more ranges"


def test_means_are_of_the_updates_that_were_applied() -> None:
    made, skipped = {"update/skipped": 0.0, "loss": 2.0, "k1": 1.0}, {"update/skipped": 1.0, "loss": math.nan}
    assert over_updates([made, skipped, {**made, "loss": 4.0}], "update/skipped") == {
        "update/skipped": 1.0,
        "loss": 3.0,
        "k1": 1.0,
    }
    assert over_updates([skipped, skipped], "update/skipped") == {"update/skipped": 2.0}
    assert over_updates([{"threshold": 1.0}], "update/skipped") == {"threshold": 1.0}
    assert over_updates([], "update/skipped") == {}
