"""What bfloat16 costs: log-prob, entropy, threshold, selected tokens and gradient against float32 on the same rollouts.

    python benchmarks/numerics.py --out benchmarks/results/numerics_cpu.json

float32       the policy in float32: the reference
bfloat16      the policy in bfloat16 as this package runs it: logits and their statistics in float32
rounded       the same, its logits rounded to bfloat16 before float32 statistics: an output layer in the model's dtype
all_bfloat16  the same, and softmax, log-prob and entropy in bfloat16 too; no gradient

The last two also stand against `bfloat16`, whose hidden states are theirs: that is what float32 in the head alone buys.

The weights are random, the same values (of bfloat16) for all, and so are the tokens. The final norm's weights spread widely, so
that entropies do: the quantiles stand in the result.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from head.measure import machine
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from megatron_fork import distributed, objective, selection
from megatron_fork.conversion import load_weights
from megatron_fork.distributed import Layout, parallel_layout
from megatron_fork.experience import Batch, Demonstration, Prompt
from megatron_fork.models import StatisticsModel
from megatron_fork.policy import OptimizerConfig, Policy, PolicyConfig
from megatron_fork.run.console import quiet_libraries
from megatron_fork.vocab_parallel import TokenStatistics, token_statistics

_PROMPT, _RESPONSE = 16, 112


class RoundedLogits(StatisticsModel):
    """A head that keeps its logits in the model's dtype, as a linear layer does."""

    in_half = False  # the statistics too

    def _answer(self, hidden_td: Tensor, targets_t: Tensor, rows_t: Tensor | None) -> Any:
        if rows_t is not None:
            hidden_td, targets_t = hidden_td[rows_t], targets_t[rows_t]
        logits_tv = hidden_td @ self.output_layer.weight.T
        if self.in_half:
            logprob_tv = torch.log_softmax(logits_tv, -1)
            logprob_t = logprob_tv.gather(1, targets_t[:, None])[:, 0]
            return TokenStatistics(logprob_t.float(), -(logprob_tv.exp() * logprob_tv).sum(-1).float())
        statistics = token_statistics(logits_tv, targets_t)
        return statistics if self._row_loss is None else self._row_loss(statistics, slice(0, len(targets_t)))


def model_config(options: argparse.Namespace) -> Qwen3Config:
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=options.width // 8,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )


def random_weights(config: Qwen3Config, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=1.5 / config.hidden_size**0.5)
        model.model.norm.weight.copy_(torch.randn(config.hidden_size).exp_())
    return {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}


def random_batch(config: Qwen3Config, sequences: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    token_sl = torch.randint(config.vocab_size, (sequences, _PROMPT + _RESPONSE), generator=generator).tolist()
    return Batch(
        [
            Demonstration(number, Prompt(number, "", tuple(tokens[:_PROMPT]), ""), tuple(tokens[_PROMPT:]))
            for number, tokens in enumerate(token_sl)
        ]
    )


def policy_of(kind: str, config: Qwen3Config, weights: dict[str, Tensor], layout: Layout) -> Policy:
    precision = PolicyConfig(precision="fp32" if kind == "float32" else "bf16", tokens_per_micro_batch=1024)
    # No clipping to speak of: the norm is only measured.
    policy = Policy(precision, OptimizerConfig(clip_gradient=1e9), config, layout)
    load_weights(policy.model, weights)
    policy.weights_changed()
    if kind in ("rounded", "all_bfloat16"):
        chunk = policy.model[0]
        chunk.__class__ = RoundedLogits  # only the head differs
        chunk.in_half = kind == "all_bfloat16"  # type: ignore[assignment]
    return policy


def top(entropy_t: Tensor) -> selection.Selection:
    return selection.select_tokens(entropy_t, torch.ones_like(entropy_t, dtype=torch.bool), selection.SelectionConfig())


def gradient(policy: Policy, batch: Batch, statistics: TokenStatistics, chosen_t: Tensor) -> tuple[float, Tensor]:
    """Norm, and the gradient itself in one row, of the first update on `chosen_t`; advantages are random signs."""
    signs = torch.randint(2, (len(batch.sequences),), generator=torch.Generator().manual_seed(1))
    advantage_t = (2.0 * signs - 1.0)[batch.sequence_t]
    config, count = objective.ObjectiveConfig(), int(chosen_t.sum())

    def loss_of(now: TokenStatistics, places: Tensor) -> objective.PolicyLoss:
        marked = torch.ones_like(places, dtype=torch.bool)
        old = statistics.logprob[places]
        return objective.policy_loss(now.logprob, old, advantage_t[places], marked, config, normalizer=count)

    update = policy.update(batch, chosen_t, loss_of, learning_rate=1e-12)
    parameters = dict(policy.model[0].named_parameters())
    return update.gradient_norm, torch.cat([parameters[name].main_grad.flatten() for name in sorted(parameters)])


def compare(options: argparse.Namespace, seed: int, layout: Layout) -> dict[str, dict[str, float]]:
    """Every kind against float32, with one set of weights and tokens."""
    config = model_config(options)
    weights, batch = random_weights(config, seed), random_batch(config, options.sequences, seed)
    found: dict[str, dict[str, float]] = {}
    reference: tuple[TokenStatistics, selection.Selection, float, Tensor] | None = None
    same_hidden: tuple[TokenStatistics, selection.Selection]
    for kind in ("float32", "bfloat16", "rounded", "all_bfloat16"):
        policy = policy_of(kind, config, weights, layout)
        statistics = policy.statistics(batch)
        chosen = top(statistics.entropy)
        if reference is None:
            norm, row = gradient(policy, batch, statistics, chosen.mask)
            reference = statistics, chosen, norm, row
            levels = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])
            quantiles = statistics.entropy.quantile(levels).tolist()
            names = [f"entropy_quantile_{level:.1f}" for level in levels.tolist()]
            found[kind] = {**dict(zip(names, quantiles, strict=True)), "threshold": chosen.threshold, "norm": norm}
            continue
        exact, wanted, exact_norm, exact_row = reference
        result = differences(statistics, chosen, exact, wanted)
        if kind == "bfloat16":
            same_hidden = statistics, chosen
        else:
            found[f"{kind} against bfloat16"] = differences(statistics, chosen, *same_hidden)
        if kind != "all_bfloat16":
            norm, row = gradient(policy, batch, statistics, wanted.mask)
            result["gradient_norm_relative"] = abs(norm - exact_norm) / exact_norm
            result["gradient_relative"] = float((row - exact_row).norm() / exact_row.norm())
        found[kind] = result
        del policy
        gc.collect()
    return found


def differences(
    ours: TokenStatistics, chosen: selection.Selection, theirs: TokenStatistics, wanted: selection.Selection
) -> dict[str, float]:
    return {
        **{f"logprob_{name}": value for name, value in distance(ours.logprob, theirs.logprob).items()},
        **{f"entropy_{name}": value for name, value in distance(ours.entropy, theirs.entropy).items()},
        "threshold_relative": abs(chosen.threshold - wanted.threshold) / wanted.threshold,
        "selected_share": chosen.selected / chosen.candidates,
        "selected_overlap": float((chosen.mask & wanted.mask).sum() / wanted.mask.sum()),
    }


def distance(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Mean and largest |difference|, and the mean difference, in nats."""
    difference = ours - theirs
    size = difference.abs()
    return {"mean": float(size.mean()), "max": float(size.max()), "bias": float(difference.mean())}


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: max(row[name] for row in rows) if name.endswith("_max") else sum(row[name] for row in rows) / len(rows)
        for name in rows[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=16, help=f"of {_PROMPT} + {_RESPONSE} tokens")
    parser.add_argument("--seeds", type=int, default=3, help="sets of weights and tokens; results are their means")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    began = time.perf_counter()
    distributed.initialize()
    with parallel_layout(distributed.ParallelConfig()) as layout:
        runs = [compare(options, seed, layout) for seed in range(options.seeds)]
    distributed.finalize()
    results = {kind: mean([run[kind] for run in runs]) for kind in runs[0]}
    for kind, values in results.items():
        print(kind, " ".join(f"{name}={value:.4g}" for name, value in values.items()), sep="\t")
    if options.out:
        record = {
            "command": shlex.join(["python", "benchmarks/numerics.py", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
            "seconds": round(time.perf_counter() - began, 1),
            "shape": {name: vars(options)[name] for name in ("layers", "width", "vocabulary", "sequences", "seeds")},
            "results": results,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
