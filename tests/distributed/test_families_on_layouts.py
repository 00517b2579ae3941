"""Every family on every kind of layout: logits are Hugging Face's, and weights come back bit for bit."""

import itertools

import pytest
import torch
from support.ranks import run_on_ranks

LENGTHS = [10, 7, 12, 40, 3, 2]  # an even sum: it splits over two tensor ranks
UNTIED = {"tie_word_embeddings": False}
DENSE = {
    "qwen3": ("qwen3", UNTIED),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", UNTIED),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
}
EXPERTS = {
    "experts": ("qwen3_moe", UNTIED),
    "experts, tied, weights not normalised": ("qwen3_moe", {"tie_word_embeddings": True, "norm_topk_prob": False}),
}
LAYOUTS = {
    "tensor": (2, {"tensor": 2}, DENSE),
    "tensor and sequence": (2, {"tensor": 2, "sequence": True}, DENSE),
    "expert": (2, {"expert": 2}, EXPERTS),
    "expert tensor": (2, {"tensor": 2, "sequence": True, "expert_tensor": 2}, EXPERTS),
    "pipeline": (2, {"pipeline": 2}, DENSE | EXPERTS),
    "tensor x expert": (4, {"tensor": 2, "sequence": True, "expert": 2}, EXPERTS),
    "tensor x expert x expert tensor": (
        4,
        {"tensor": 2, "sequence": True, "expert": 2, "expert_tensor": 2},
        EXPERTS,
    ),
    "pipeline x expert": (4, {"pipeline": 2, "expert": 2}, EXPERTS),
}


def compare_layouts(names: list[str]) -> dict[str, dict]:
    """`compare` of several layouts in one world: starting ranks takes longer than what they do here."""
    return {name: compare(*LAYOUTS[name][1:]) for name in names}


def compare(parallel: dict, variants: dict) -> dict[str, tuple[list[str], list[str], float]]:
    """For each variant: tensors of policy and of critic that did not come back, and the largest difference of logits."""
    from support.tiny_qwen3 import family_config, hugging_face_model

    from megatron_fork.conversion import PublishedWeights, load_weights
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.models import build_chunks, build_value_chunks

    found = {}
    with parallel_layout(ParallelConfig(**parallel)) as layout:
        for name, (family, fields) in variants.items():
            config = family_config(family, **fields)
            theirs = hugging_face_model(config)
            weights = theirs.state_dict()
            policy, critic = (build(config, layout.config) for build in (build_chunks, build_value_chunks))
            load_weights(policy, weights)
            load_weights(critic, weights)
            published = dict(PublishedWeights(weights))
            head = published.pop("lm_head.weight")
            of_critic = changed(critic, published)
            if not config.tie_word_embeddings:
                published["lm_head.weight"] = head
            difference = 0.0 if layout.config.pipeline > 1 else logits_difference(policy[0], theirs, layout)
            found[name] = (changed(policy, published), of_critic, difference)
    return found


def changed(model, weights: dict[str, torch.Tensor]) -> list[str]:
    """Names that are missing, surplus or not equal bit for bit."""
    from megatron_fork.conversion import iter_hf_weights

    left = dict(weights)
    wrong = []
    for name, tensor in iter_hf_weights(model):
        wanted = left.pop(name, None)
        if wanted is None or tensor.dtype != wanted.dtype or not torch.equal(tensor, wanted):
            wrong.append(name)
    return wrong + list(left)


@torch.no_grad()
def logits_difference(ours, theirs, layout) -> float:
    """Largest difference on a packed row, which has other tokens and sequences on every data-parallel rank."""
    from megatron.core.packed_seq_params import PackedSeqParams

    from megatron_fork.distributed import collectives

    lengths = LENGTHS[: len(LENGTHS) - layout.data.rank()]
    tokens = torch.randint(0, 61, (1, sum(lengths)), generator=torch.Generator().manual_seed(layout.data.rank()))
    edges = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=edges,
        cu_seqlens_kv=edges,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
    )
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    shards = collectives.all_gather(ours(tokens, positions, None, packed_seq_params=packed), layout.tensor)
    logits = torch.cat(list(shards), dim=-1)[..., :61]
    expected = torch.cat(
        [theirs(input_ids=tokens[:, a:b]).logits for a, b in itertools.pairwise(edges.tolist())], dim=1
    )
    return ((logits - expected).abs().max() / max(1.0, expected.abs().max())).item()


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[dict]]:
    """What each world size found on each of its ranks; filled as tests ask."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_and_round_trips(name: str, worlds: dict[int, list[dict]]) -> None:
    ranks, _, variants = LAYOUTS[name]
    if ranks not in worlds:
        names = [other for other in LAYOUTS if LAYOUTS[other][0] == ranks]
        worlds[ranks] = run_on_ranks(compare_layouts, ranks, names, time_limit=400.0)
    for found in worlds[ranks]:
        assert found[name].keys() == variants.keys()
        for policy, critic, difference in found[name].values():
            assert policy == []
            assert critic == []
            assert difference <= 5e-6


def virtual_stages(family: str, tied: bool) -> tuple[list[list[str]], list[str]]:
    """Names of the layers in this rank's two chunks, and the tensors that did not come back."""
    from support.tiny_qwen3 import family_config, hugging_face_model

    from megatron_fork.conversion import PublishedWeights, load_weights
    from megatron_fork.conversion.parameters import local_parameters
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.models import build_chunks

    hf_config = family_config(family, num_hidden_layers=8, tie_word_embeddings=tied)
    weights = hugging_face_model(hf_config).state_dict()
    with parallel_layout(ParallelConfig(pipeline=2, virtual_pipeline=2)) as layout:
        chunks = build_chunks(hf_config, layout.config)
        load_weights(chunks, weights)
        published = dict(PublishedWeights(weights))
        if tied:
            published.pop("lm_head.weight")
        layers = [
            sorted({name.split(".")[2] for name in local_parameters([chunk]) if name.startswith("decoder.layers.")})
            for chunk in chunks
        ]
        return layers, changed(chunks, published)


def virtual_stages_of_both_kinds() -> list[tuple[list[list[str]], list[str]]]:
    return [virtual_stages("qwen3", tied=True), virtual_stages("qwen3_moe", tied=False)]


@pytest.mark.slow
def test_virtual_stages_hold_their_own_layers() -> None:
    first, second = run_on_ranks(virtual_stages_of_both_kinds, 2)
    assert first == [([["0", "1"], ["4", "5"]], [])] * 2
    assert second == [([["2", "3"], ["6", "7"]], [])] * 2
