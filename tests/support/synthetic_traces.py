"""Traced responses of invented tokens, with entropies as skewed as a reasoning model's, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from megatron_fork.traces import Origin, TracedResponse

ORIGIN = Origin(model="invented", tokenizer="invented", vocab_size=5000, written_by="tests")
FORKS = [" wait", " however", " thus", " since", " suppose", " assume", " given", " so", " let", " maybe"]


def vocabulary(words: int = 5000) -> list[str]:
    """Of which the first are those that fork."""
    return [*FORKS, *(f" w{number}" if number % 3 else f"{number}" for number in range(len(FORKS), words))]


def traced_responses(
    count: int, tokens: int, *, seed: int = 0, samples: int = 8, steps: int = 10
) -> Iterator[TracedResponse]:
    """`count` trained responses of `tokens` tokens each, `samples` to a prompt, over `steps` steps, half of them right."""
    noise = numpy.random.default_rng(seed)
    texts = vocabulary()
    for number in range(count):
        forks = noise.random(tokens) < 0.2
        drawn = numpy.where(
            forks, noise.integers(0, len(FORKS), tokens), noise.integers(len(FORKS), len(texts), tokens)
        )
        entropy = numpy.where(forks, noise.gamma(4, 0.35, tokens), 10 ** noise.normal(-2.5, 1.2, tokens).clip(-6, -0.2))
        prompt = number // samples
        named = [texts[token] for token in drawn.tolist()]
        yield TracedResponse(
            set="training",
            prompt_id=f"p{prompt}",
            prompt=f"Problem {prompt}: what is {prompt} + {prompt + 1}?",
            prompt_tokens=[1, 2, 3],
            answer=str(2 * prompt + 1),
            sample=number % samples,
            response="".join(named),
            tokens=drawn.tolist(),
            token_texts=named,
            entropy=entropy.tolist(),
            logprob=(-entropy * noise.random(tokens)).tolist(),
            selected=forks.tolist(),
            weight_version=[0] * tokens,
            reward=float(noise.random() < 0.5),
            reason="compared",
            finish_reason="stop" if noise.random() < 0.9 else "length",
            kind="trained",
            step=number * steps // count,
            number=number,
            advantage=float(noise.normal()),
        )
