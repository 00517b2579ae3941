"""Attention around the ring of context ranks equals attention over each sequence alone, forward and backward."""

import itertools
import random
import resource

import pytest
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from support.ranks import run_on_ranks

from megatron_fork.data.balance import zig_zag
from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import LayoutError
from megatron_fork.models import attention_blocks
from megatron_fork.models.attention import PackedAttention
from megatron_fork.models.context_attention import context_attention, runs_of

# (heads, key heads, d)
SHAPES = [(4, 4, 8), (4, 2, 8), (6, 2, 4), (3, 1, 16)]
# dtype: tolerance of values and gradients, against the largest of them
TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 1e-5), torch.bfloat16: (2e-2, 4e-2)}


def by_hand(query, key, value, lengths, scale):
    """Softmax over masked scores of each sequence alone."""
    rows = []
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    for start, end in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        future = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        rows.append((((q @ k.mT) * scale).masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(rows)


def off(found, wanted):
    return ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-300)).item()


def row_of(seed: int, ranks: int):
    """Ragged lengths, some equal neighbours and some empty, each a multiple of 2 x ranks; and leaves in float64."""
    draw = random.Random(seed)
    lengths = [2 * ranks * draw.choice([0, 1, 1, 1, 2, 5, 13]) for _ in range(draw.randint(1, 7))] + [2 * ranks]
    heads, key_heads, width = SHAPES[seed % len(SHAPES)]
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(sum(lengths), count, width, generator=generator, dtype=torch.float64)
        for count in (heads, key_heads, key_heads, heads)
    ]
    return lengths, tensors


def packed_params(lengths):
    edges = torch.tensor([0, *lengths]).cumsum(0).int()
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=edges, cu_seqlens_kv=edges)


def largest_differences(seeds: list[int], dtype: torch.dtype, group: Group) -> tuple[float, float]:
    """Of values and of gradients, from those of whole rows in float64, over `seeds`; on this rank's tokens."""
    ranks, rank = collectives.size(group), collectives.rank(group)
    values, gradients = 0.0, 0.0
    for seed in seeds:
        lengths, whole = row_of(seed, ranks)
        whole = [tensor.to(dtype).double() for tensor in whole]
        leaves = [tensor.requires_grad_() for tensor in whole[:3]]
        scale = 0.3 + 0.1 * (seed % 5)
        wanted = by_hand(*leaves, lengths, scale)
        wanted_gradients = torch.autograd.grad(wanted, leaves, whole[3])
        mine = zig_zag(packed_params(lengths).cu_seqlens_q, rank, ranks)
        local = [tensor.detach()[mine].to(dtype) for tensor in whole]
        local_leaves = [tensor.requires_grad_() for tensor in local[:3]]
        found = context_attention(*local_leaves, lengths, group=group, scale=scale)
        assert found.dtype == dtype
        values = max(values, off(found, wanted[mine]))
        for ours, theirs in zip(torch.autograd.grad(found, local_leaves, local[3]), wanted_gradients, strict=True):
            assert ours.dtype == dtype
            gradients = max(gradients, off(ours, theirs[mine]))
    return values, gradients


def all_differences(seeds: list[int]) -> dict[torch.dtype, tuple[float, float]]:
    return {dtype: largest_differences(seeds, dtype, dist.group.WORLD) for dtype in TOLERANCES}


def check_tolerances(differences: dict[torch.dtype, tuple[float, float]]) -> None:
    for dtype, found in differences.items():
        assert found[0] <= TOLERANCES[dtype][0], (dtype, found)
        assert found[1] <= TOLERANCES[dtype][1], (dtype, found)


def test_a_ring_of_one_equals_full_attention() -> None:
    check_tolerances({dtype: largest_differences(list(range(24)), dtype, None) for dtype in TOLERANCES})


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_ring_equals_full_attention(ranks: int) -> None:
    for differences in run_on_ranks(all_differences, ranks, list(range(24))):
        check_tolerances(differences)


def world() -> ProcessGroupCollection:
    groups = ProcessGroupCollection()
    groups.cp = dist.group.WORLD
    return groups


def module_differences() -> list[float]:
    """Megatron's `core_attention` on this rank's tokens, packed and not, against by hand."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4)
    module = PackedAttention(config, 1, None, "self", cp_comm_type="p2p", pg_collection=world())
    lengths, (query, key, value, _) = row_of(1, ranks)
    params = packed_params(lengths)
    mine = zig_zag(params.cu_seqlens_q, rank, ranks)
    wanted = by_hand(query, key, value, lengths, 8**-0.5)[mine].flatten(1)
    packed = module(query[mine], key[mine], value[mine], packed_seq_params=params)
    assert packed.shape == wanted.shape

    length, batch = 4 * ranks, 3
    generator = torch.Generator().manual_seed(7)
    sequences = [torch.randn(length, batch, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
    mine = zig_zag(torch.tensor([0, length]), rank, ranks)
    found = module(*(tensor[mine] for tensor in sequences))
    assert found.shape == (4, batch, 32)
    columns = [by_hand(*(tensor[:, row] for tensor in sequences), [length], 8**-0.5)[mine] for row in range(batch)]
    return [off(packed, wanted), off(found, torch.stack(columns, dim=1).flatten(2))]


@pytest.mark.slow
def test_the_module_goes_around_the_ring_packed_or_not() -> None:
    for differences in run_on_ranks(module_differences, 2):
        assert max(differences) < 1e-12


def memory_of_long_sequences() -> tuple[int, int, int]:
    """Bytes: this rank's peak, and how far 8k tokens alone and then 32k tokens on the ring lifted it, with backward."""
    config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=2)
    alone, ring = (PackedAttention(config, 1, None, "self", pg_collection=groups) for groups in (None, world()))
    peaks = [peak_memory()]
    for module, tokens, local in ((alone, 8_192, 8_192), (ring, 32_768, 32_768 // dist.get_world_size())):
        leaves = [torch.randn(local, heads, 16, requires_grad=True) for heads in (2, 1, 1)]
        module(*leaves, packed_seq_params=packed_params([tokens])).sum().backward()
        assert all(leaf.grad.isfinite().all() for leaf in leaves)
        peaks.append(peak_memory())
    return peaks[2], peaks[1] - peaks[0], peaks[2] - peaks[1]


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_memory_is_linear_in_the_local_length() -> None:
    """One matrix of scores would be 0.25 GiB a head for 8k tokens, and 1 GiB a head and step for 32k on two ranks."""
    found = run_on_ranks(memory_of_long_sequences, 2, time_limit=400.0)
    print([[f"{size / 2**20:.0f} MiB" for size in sizes] for sizes in found])
    assert sum(peak for peak, _, _ in found) < 4 * 2**30
    for _, alone, ring in found:
        assert alone < 100 * 2**20
        assert ring < 200 * 2**20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_plain_blocks_equal_the_fused_kernel(monkeypatch, dtype: torch.dtype, causal: bool, seed: int) -> None:
    """The blocks that run where no fused kernel does, with block edges inside the lengths."""
    monkeypatch.setattr(attention_blocks, "_BLOCK", 7)
    heads, key_heads, width = SHAPES[seed]
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (30, 30) if causal else (23, 30)
    query, grad = (torch.randn(2, heads, queries, width, generator=generator).to(dtype) for _ in range(2))
    key, value = (torch.randn(2, key_heads, keys, width, generator=generator).to(dtype) for _ in range(2))
    options = {"causal": causal, "scale": 0.4}
    found = attention_blocks.attend_in_blocks(query, key, value, **options)
    wanted = attention_blocks.attend(query, key, value, **options)
    # As in the ring: result and mass over these and further keys.
    out, log_mass = wanted[0] * 0.5, wanted[1] + 0.3
    block = (grad, query, key, value, out, log_mass)
    found += attention_blocks.attend_backward_in_blocks(*block, **options)
    wanted += attention_blocks.attend_backward(*block, **options)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert off(ours, theirs) < (1e-13 if dtype == torch.float64 else 2e-6)


def test_lengths_that_no_rank_can_share_are_refused() -> None:
    with pytest.raises(LayoutError, match="a packed sequence of 6 tokens is not a multiple of 2 x context=2"):
        runs_of([4, 6], 2)


def test_equal_neighbours_share_a_call() -> None:
    runs = runs_of([8, 8, 0, 4, 8], 2)
    assert [(run.start, run.length, run.count) for run in runs] == [(0, 4, 2), (8, 2, 1), (10, 4, 1)]
