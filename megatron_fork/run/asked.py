"""What an evaluation is to find, and which settings decide its result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_fork.evaluation import Problem, PromptSet, digest
from megatron_fork.models import ModelConfig
from megatron_fork.rewards import RewardsConfig
from megatron_fork.run.offline import ModelContext
from megatron_fork.run.place import checkpoint_of
from megatron_fork.run.prompt_sets import LoadedSet

# Settings of the verifier that say how it runs; all others may decide a reward.
_HOW_IT_RUNS = ("workers", "backlog", "failure_warning", "allow_code")
_SAMPLED_BYTES, _SAMPLED_PLACES = 1 << 16, 16


@dataclass(frozen=True)
class Asked:
    """What an evaluation is to find, and where it is to write it."""

    sets: Sequence[PromptSet]
    out: Path
    judged: bool = True
    """False: responses are only written, and prompts need no answers."""
    pass_at: Sequence[int] = ()
    """k of pass@k and maj@k; empty: the powers of two up to the samples."""
    served: str | None = None
    """Name or folder of the model that the servers have and keep; None: they get the weights of the policy."""
    entropy: bool = False
    """Compute the entropy of every token, by one statistics pass of the policy."""
    greedy: bool = False
    """Take the most likely tokens; each prompt then has one response."""


Loaded = dict[str, tuple[LoadedSet, list[Problem]]]
"""The sets by name, with their problems."""


def settings_of(context: ModelContext, asked: Asked, loaded: Loaded) -> dict[str, Any]:
    """What decides the result, to be compared when the evaluation goes on and shown beside it."""
    config, sampling = context.config, context.config.rollout
    return {
        **settings_of_drawing(context),
        "served": asked.served,
        "temperature": 0.0 if asked.greedy else sampling.temperature,
        "entropy_temperature": asdict(sampling.entropy_temperature),
        "rewards": deciding(config.rewards) if asked.judged else None,
        "sets": {
            chosen.name: {
                "samples": chosen.samples,
                "prompts": digest(loaded[chosen.name][1]),
                "source": chosen.data.source,
                "preset": chosen.data.preset,
                "template": chosen.data.template,
                **({"rewards": deciding(chosen.rewards)} if chosen.rewards and asked.judged else {}),
            }
            for chosen in asked.sets
        },
    }


def settings_of_drawing(context: ModelContext) -> dict[str, Any]:
    """What decides which responses are drawn to a prompt, but for the temperature."""
    config, sampling = context.config, context.config.rollout
    return {
        "model": config.model.path or config.model.hf_config,
        "weights": weights_mark(config.model),
        "seed": config.seed,
        "engine": sampling.engine,
        "precision": config.policy.precision,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "max_response_tokens": sampling.max_response_tokens,
        "stop_tokens": list(context.stop_tokens),
    }


def deciding(rewards: RewardsConfig) -> dict[str, Any]:
    """The settings of the verifier that may decide a reward, by name."""
    return {name: value for name, value in vars(rewards).items() if name not in _HOW_IT_RUNS}


def weights_mark(model: ModelConfig) -> str:
    """A mark of the weights that `model` means: of samples of their files, or a checkpoint's manifest; empty if drawn."""
    saved = checkpoint_of(model)
    if saved is not None:
        return hashlib.blake2b((saved / "manifest.json").read_bytes(), digest_size=8).hexdigest()
    content = hashlib.blake2b(digest_size=8)
    files = sorted(Path(model.path).glob("*.safetensors")) if model.path else []
    for file in files:
        size = file.stat().st_size
        content.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for place in range(_SAMPLED_PLACES):
                stream.seek(size * place // _SAMPLED_PLACES)
                content.update(stream.read(_SAMPLED_BYTES))
    return content.hexdigest() if files else ""
