"""What the named choices change on one and the same batch: the tables of docs/semantics.md.

    python benchmarks/choices.py

A batch of 32 responses of 20 to 2,000 tokens in 8 micro-batches, entropies of a heavy tail (half of them below 0.01 nats, as
the paper reports of Qwen3-8B), log-ratios of a policy a few updates on. Nothing is timed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork import objective, selection

RESPONSES, MICRO_BATCHES = 32, 8


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 2001, (RESPONSES,), generator=generator)
    tokens = int(lengths.sum())
    sequence = torch.arange(RESPONSES).repeat_interleave(lengths)
    # Some responses hesitate more than others, which is where local cuts and a global one part.
    temper = 0.5 + torch.rand(RESPONSES, generator=generator)
    entropy = temper[sequence] * (torch.randn(tokens, generator=generator) * 2.6 - 4.6).exp().clamp(max=4.0)
    return {
        "sequence": sequence,
        "micro_batch": sequence // (RESPONSES // MICRO_BATCHES),
        "entropy": entropy,
        "logprob": -entropy * torch.rand(tokens, generator=generator),
        "log_ratio": 0.25 * entropy.sqrt() * torch.randn(tokens, generator=generator),
        "advantage": torch.randn(RESPONSES, generator=generator)[sequence],
    }


def selections(made: dict[str, Tensor]) -> None:
    everything = torch.ones_like(made["entropy"], dtype=torch.bool)
    reference = None
    print("| preset | scope, rule | threshold | selected | shared with `paper` | of a response |\n|" + "---|" * 6)
    cases = {
        "paper": ("minibatch", "threshold"),
        "authors_code": ("microbatch", "exact_k"),
        "trl": ("microbatch_global", "quantile"),
        "(per response)": ("sequence", "threshold"),
    }
    for name, (scope, rule) in cases.items():
        config = selection.SelectionConfig(scope=scope, rule=rule)
        segments = made["sequence"] if scope == "sequence" else made["micro_batch"]
        chosen = selection.select_tokens(made["entropy"], everything, config, segments=segments)
        reference = chosen.mask if reference is None else reference
        shared = float((chosen.mask & reference).sum() / reference.sum())
        each = torch.bincount(made["sequence"][chosen.mask], minlength=RESPONSES) / torch.bincount(made["sequence"])
        print(
            f"| `{name}` | {scope}, {rule} | {chosen.threshold:.3f} | {chosen.selected} of {chosen.candidates} | "
            f"{shared:.1%} | {float(each.min()):.1%} to {float(each.max()):.1%} |"
        )


def losses(made: dict[str, Tensor]) -> None:
    everything = torch.ones_like(made["entropy"], dtype=torch.bool)
    chosen = selection.select_tokens(made["entropy"], everything, selection.SelectionConfig()).mask
    cases: dict[str, objective.ObjectiveConfig] = {
        "ppo, selected": objective.ObjectiveConfig(),
        "ppo, all": objective.ObjectiveConfig(denominator="all"),
        "ppo, sequence mean": objective.ObjectiveConfig(average="sequence"),
        "ppo, constant 2000": objective.ObjectiveConfig(average="constant", constant_length=2000),
        "gspo": objective.ObjectiveConfig(loss="gspo", average="sequence", clip_low=3e-4, clip_high=4e-4),
        "cispo": objective.ObjectiveConfig(loss="cispo", clip_low=1.0),
        "clip_cov": objective.ObjectiveConfig(loss="clip_cov", cov_low=0.1),
        "kl_cov": objective.ObjectiveConfig(loss="kl_cov", dual_clip=0.0),
        "archer": objective.ObjectiveConfig(loss="archer", clip_high=0.2),
        "ppo, shaped": objective.ObjectiveConfig(entropy_shaping=objective.EntropyShaping(alpha=0.4)),
    }
    print("\n| objective | loss | gradient norm | tokens with gradient | clipped or covered |\n|---|---|---|---|---|")
    for name, config in cases.items():
        logprob = made["logprob"].clone().requires_grad_()
        trained = everything if config.loss == "archer" else chosen
        weights = objective.token_weights(trained, everything, made["sequence"], config)
        covered = None
        if config.loss in ("clip_cov", "kl_cov"):
            covered = objective.covariance_tokens(made["logprob"], made["advantage"], trained, config)
        loss, metrics = objective.policy_loss(
            logprob,
            made["logprob"] - made["log_ratio"],
            made["advantage"],
            trained,
            config,
            normalizer=weights.normalizer,
            entropy=made["entropy"],
            sequence=made["sequence"],
            weight=weights.weight,
            forking=chosen,
            covered=covered,
        )
        (gradient,) = torch.autograd.grad(loss, logprob)
        bounded = metrics["clipped_low"] + metrics["clipped_high"] + metrics["dual_clipped"] + metrics.get("covered", 0)
        print(
            f"| {name} | {float(loss.detach()):+.4f} | {float(gradient.norm()):.2e} | {int((gradient != 0).sum())} | "
            f"{float(bounded / metrics['tokens']):.2%} |"
        )


def main() -> None:
    made = batch()
    selections(made)
    losses(made)


if __name__ == "__main__":
    main()
