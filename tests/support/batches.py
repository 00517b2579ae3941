"""Batches of sequences whose every token tells where it came from."""

import torch

from megatron_fork.experience import Batch, Demonstration, Prompt


def batch_of(lengths: list[tuple[int, int]]) -> Batch:
    """Sequences of (prompt, response) tokens that are all different; the entropy of a response token is its token."""
    sequences, following = [], 1
    for number, (prompt, response) in enumerate(lengths):
        tokens = tuple(range(following, following + prompt + response))
        following += prompt + response
        sequences.append(Demonstration(number, Prompt(number, "", tokens[:prompt], ""), tokens[prompt:]))
    entropies = [float(token) for sequence in sequences for token in sequence.response]
    return Batch(sequences, entropy_t=torch.tensor(entropies))
