"""Logits and statistics of Megatron's model equal those of Hugging Face's Qwen3 with the same weights."""

import itertools

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from tiny_qwen3 import hugging_face_model, megatron_model, tiny_config

LENGTHS = [10, 10, 12, 40, 3, 1]
VARIANTS = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "rotary base": {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "norm epsilon": {"tie_word_embeddings": True, "rms_norm_eps": 1e-2},
    "one key head": {"tie_word_embeddings": False, "num_key_value_heads": 1},
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest):
    config = tiny_config(**VARIANTS[request.param])
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
    pairs = [
        (ours.embedding.word_embeddings.weight, theirs.model.embed_tokens.weight),
        (ours.decoder.layers[0].input_layernorm.weight, theirs.model.layers[0].input_layernorm.weight),
        (ours.decoder.layers[1].mlp.linear_fc2.weight, theirs.model.layers[1].mlp.down_proj.weight),
        (ours.decoder.layers[0].self_attention.q_layernorm.weight, theirs.model.layers[0].self_attn.q_norm.weight),
    ]
    for mine, reference in pairs:
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0.0, atol=2e-5 * reference.grad.abs().max().item())


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
