"""Logits, statistics and gradients of Megatron's model equal those of Hugging Face with the same weights, in every family."""

import itertools
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from support.tiny_qwen3 import family_config, hugging_face_model, megatron_model

from megatron_fork.conversion import PublishedWeights
from megatron_fork.conversion.parameters import entries_of, local_parameters

LENGTHS = [10, 10, 12, 40, 3, 1]
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("qwen3", TIED),
    "untied": ("qwen3", UNTIED),
    "rotary base": ("qwen3", {**UNTIED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "norm epsilon": ("qwen3", {**TIED, "rms_norm_eps": 1e-2}),
    "one key head": ("qwen3", {**UNTIED, "num_key_value_heads": 1}),
    "yarn": ("qwen3", {**TIED, "rope_parameters": YARN}),
    "experts": ("qwen3_moe", UNTIED),
    "experts, tied": ("qwen3_moe", {**TIED, "num_experts": 8, "num_experts_per_tok": 3}),
    "experts, weights not normalised": ("qwen3_moe", {**UNTIED, "norm_topk_prob": False}),
    "one expert a token": ("qwen3_moe", {**UNTIED, "norm_topk_prob": False, "num_experts_per_tok": 1}),
    "experts as wide as the dense layer": ("qwen3_moe", {**UNTIED, "moe_intermediate_size": 48}),
    "biases": ("qwen2", UNTIED),
    "biases, tied": ("qwen2", {**TIED, "num_key_value_heads": 4}),
    "yarn with its attention factor": ("qwen2", {**UNTIED, "rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "llama": ("llama", {**UNTIED, "head_dim": 16}),
    "llama, tied": ("llama", TIED),
    "llama 3": ("llama", {**UNTIED, "max_position_embeddings": 16384, "rope_parameters": LLAMA3}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest):
    family, fields = VARIANTS[request.param]
    config = family_config(family, **fields)
    theirs = hugging_face_model(config)
    with megatron_model(config, theirs.state_dict(), temperature=0.7) as ours:
        yield ours, theirs


@pytest.fixture(scope="module")
def row() -> dict:
    generator = torch.Generator().manual_seed(1)
    edges = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    tokens = sum(LENGTHS)
    return {
        "tokens": torch.randint(0, 61, (1, tokens), generator=generator),
        "targets": torch.randint(0, 61, (1, tokens), generator=generator),
        "rows": torch.rand(1, tokens, generator=generator) < 0.3,
        "positions": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "edges": edges,
        "packed": PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=edges,
            cu_seqlens_kv=edges,
            max_seqlen_q=max(LENGTHS),
            max_seqlen_kv=max(LENGTHS),
        ),
    }


def expected_logits(theirs, row: dict) -> torch.Tensor:
    edges = row["edges"].tolist()
    parts = [theirs(input_ids=row["tokens"][:, a:b]).logits for a, b in itertools.pairwise(edges)]
    return torch.cat(parts, dim=1)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=5e-6 * max(1.0, wanted.abs().max().item()))


@torch.no_grad()
def test_packed_logits(pair, row: dict) -> None:
    ours, theirs = pair
    close(ours(row["tokens"], row["positions"], None, packed_seq_params=row["packed"]), expected_logits(theirs, row))


@torch.no_grad()
def test_unpacked_logits(pair) -> None:
    ours, theirs = pair
    tokens = torch.randint(0, 61, (3, 25), generator=torch.Generator().manual_seed(2))
    close(ours(tokens, torch.arange(25).expand(3, 25), None), theirs(input_ids=tokens).logits)


def test_statistics_and_their_gradients_at_the_marked_rows(pair, row: dict) -> None:
    ours, theirs = pair
    found = ours(
        row["tokens"],
        row["positions"],
        None,
        labels=row["targets"],
        loss_mask=row["rows"],
        packed_seq_params=row["packed"],
    )
    log_p = (expected_logits(theirs, row)[0] / 0.7).log_softmax(-1)
    logprob = log_p.gather(1, row["targets"][0][:, None])[:, 0][row["rows"][0]]
    entropy = -(log_p.exp() * log_p).sum(-1)[row["rows"][0]]
    close(found.logprob, logprob)
    close(found.entropy, entropy)
    ours.zero_grad()
    theirs.zero_grad()
    (found.logprob.sum() + 0.3 * found.entropy.sum()).backward()
    (logprob.sum() + 0.3 * entropy.sum()).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = PublishedWeights(gradients)
    parameters = local_parameters([ours])
    compared = set()
    for entry in entries_of(ours):
        mine = entry.rule.join([parameters[entry.megatron].grad], ours.hf_config)
        for name, gradient in zip(entry.hugging_face, mine, strict=True):
            scale = max(expected[name].abs().max().item(), 1e-3)  # an expert may have no token, and no gradient
            torch.testing.assert_close(gradient, expected[name], rtol=0.0, atol=2e-5 * scale, msg=name)
            compared.add(name)
    assert compared == set(expected)


@torch.no_grad()
def test_statistics_without_rows_are_of_all_tokens(pair, row: dict) -> None:
    ours, _ = pair
    everywhere, marked = (
        ours(
            row["tokens"],
            row["positions"],
            None,
            labels=row["targets"],
            loss_mask=rows,
            packed_seq_params=row["packed"],
        )
        for rows in (None, row["rows"])
    )
    assert everywhere.entropy.shape == (sum(LENGTHS),)
    close(everywhere.entropy[row["rows"][0]], marked.entropy)
    close(everywhere.logprob[row["rows"][0]], marked.logprob)
