"""One call attends within every sequence as grouped calls do; which kernel runs is chosen for a reason that can be read."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from support.gpu import NEEDS_GPU
from torch import Tensor

from megatron_fork.errors import ConfigError
from megatron_fork.models import ComputeConfig, attention_kernels, choose_attention, choose_elementwise
from megatron_fork.models.attention import PackedAttention
from megatron_fork.models.attention_kernels import ONE_CALL
from megatron_fork.models.layers.config import LayerConfig
from megatron_fork.models.layers.packed_row import PackedRow, positions

LENGTHS = (40, 7, 7, 129, 1)
HEADS, KEY_HEADS, WIDTH = 4, 2, 16


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has one; nothing runs there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    attention_kernels._flash_function.cache_clear()
    yield
    attention_kernels._flash_function.cache_clear()


def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, source: str) -> None:
    (tmp_path / f"{package}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)


def row_on(device: str) -> PackedRow:
    edges = torch.tensor([0, *LENGTHS]).cumsum(0).to(device, torch.int32)
    return PackedRow.of(LENGTHS, edges, positions(LENGTHS, 0, 1).to(device))


def heads_on(device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, WIDTH), (KEY_HEADS, WIDTH), (KEY_HEADS, WIDTH))
    return [
        torch.randn(sum(LENGTHS), *shape, generator=generator).to(device, torch.bfloat16).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is taken without a GPU")
def test_without_a_gpu() -> None:
    chosen = choose_attention(ComputeConfig(), torch.bfloat16, 128)
    assert (chosen.kernel, chosen.reason) == ("sdpa", "no GPU is visible")
    assert choose_elementwise(ComputeConfig()).kernels == "torch"
    with pytest.raises(ConfigError, match=r"compute.attention=varlen cannot run: no GPU is visible"):
        choose_attention(ComputeConfig(attention="varlen"), torch.bfloat16, 128)


def test_with_a_gpu_alone_torch_s_own_is_taken(gpu: None) -> None:
    chosen = choose_attention(ComputeConfig(), torch.bfloat16, 128)
    assert chosen.kernel == "varlen"
    assert chosen.reason == "one call for all sequences; not flash: the package flash-attn is not installed"


def test_float32_and_wide_heads_need_the_padded_kernel(gpu: None) -> None:
    chosen = choose_attention(ComputeConfig(), torch.float32, 128)
    assert chosen.kernel == "sdpa" and chosen.reason == "its types have 16 bits, policy.precision is float32"
    assert choose_attention(ComputeConfig(), torch.bfloat16, 512).kernel == "sdpa"


def test_a_flash_attn_that_does_not_import(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, "flash_attn", "raise ImportError('undefined symbol: _ZN3c10')")
    chosen = choose_attention(ComputeConfig(), torch.bfloat16, 128)
    assert chosen.kernel == "varlen"
    assert "not flash: flash_attn is installed but cannot be imported: undefined symbol: _ZN3c10" in chosen.reason
    with pytest.raises(ConfigError, match=r"compute.attention=flash cannot run: flash_attn is installed but cannot"):
        choose_attention(ComputeConfig(attention="flash"), torch.bfloat16, 128)


def test_a_flash_attn_without_the_function(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, "flash_attn", "")
    assert "has no attribute 'flash_attn_varlen_func'" in choose_attention(ComputeConfig(), torch.bfloat16).reason


_BY_HAND = """
def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False):
    import torch
    assert causal and cu_seqlens_q is cu_seqlens_k and max_seqlen_q == int(cu_seqlens_q.diff().max())
    rows = []
    for a, b in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist()):
        one = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
        attend = torch.nn.functional.scaled_dot_product_attention
        rows.append(attend(*one, is_causal=True, scale=softmax_scale, enable_gqa=True))
    return torch.cat([row[0].transpose(0, 1) for row in rows]), "log mass"
"""


def test_the_newest_flash_attn_is_called_as_its_signature_says(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with flash-attn 3's signature, which gives a log mass as well."""
    installed(tmp_path, monkeypatch, "flash_attn", "raise ImportError")
    installed(tmp_path, monkeypatch, "flash_attn_interface", _BY_HAND)
    assert choose_attention(ComputeConfig(), torch.bfloat16, 128).kernel == "flash"
    close(attended("flash", "cpu"), attended("sdpa", "cpu"))


def test_torch_s_kernel_takes_what_it_is_given() -> None:
    """On the meta device, where only shapes are computed: grouped heads, a view of values, forward and backward."""
    query, key, value = (tensor.detach().to("meta").requires_grad_() for tensor in heads_on("cpu"))
    wide = torch.empty(sum(LENGTHS), KEY_HEADS, 4, WIDTH, device="meta", dtype=torch.bfloat16)
    row = row_on("meta")
    found = ONE_CALL["varlen"].attend(query, key, wide[:, :, -1], row, 0.25)
    assert found.shape == query.shape
    gradient = torch.autograd.grad(found.sum(), (query, key))
    assert [each.shape for each in gradient] == [query.shape, key.shape]
    assert ONE_CALL["varlen"].attend(query, key, value, row, None).dtype == torch.bfloat16


def attended(kernel: Any, device: str) -> list[Tensor]:
    """The result and the gradients of `PackedAttention`."""
    config = LayerConfig(num_layers=1, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, attention_kernel=kernel)
    tensors = heads_on(device)
    found = PackedAttention(config, 1, None, "self")(*tensors, packed_seq_params=row_on(device))
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found)
    return [found, *torch.autograd.grad(found, tensors, upstream)]


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=2e-2 * scale)


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("kernel", ["varlen", "flash"])
def test_one_call_attends_as_grouped_calls_do(kernel: Any) -> None:
    try:
        choose_attention(ComputeConfig(attention=kernel), torch.bfloat16, WIDTH)
    except ConfigError as lacking:
        pytest.skip(f"needs a GPU's kernel: {lacking}")
    close(attended(kernel, "cuda"), attended("sdpa", "cuda"))


def test_lengths_are_read_once_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that reads a tensor's numbers makes the host wait for the GPU."""
    row, tensors = row_on("cpu"), heads_on("cpu")
    config = LayerConfig(num_layers=1, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS)
    layer = PackedAttention(config, 1, None, "self")
    asked = []
    monkeypatch.setattr(Tensor, "tolist", lambda self: asked.append(self))
    layer(*tensors, packed_seq_params=row)
    assert not asked


def test_megatron_s_own_parameters_are_completed() -> None:
    row = row_on("cpu")
    theirs = PackedSeqParams("thd", row.cu_seqlens_q, row.cu_seqlens_q)
    found = PackedRow.completed(theirs, 0, 1)
    assert found.lengths == LENGTHS and found.max_seqlen_q == max(LENGTHS)
    assert torch.equal(found.position_t, row.position_t)
    assert PackedRow.completed(found, 0, 1) is found
