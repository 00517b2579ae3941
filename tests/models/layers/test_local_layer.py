"""Local layers give the values and gradients of Megatron's own modules, and keep less than half of their memory."""

from typing import Any

import pytest
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.module import Float16Module
from support.gpu import DEVICE
from support.ranks import run_on_ranks
from support.saved_bytes import Saved
from support.tiny_qwen3 import family_config
from torch import Tensor, nn

from megatron_fork import distributed
from megatron_fork.distributed import ParallelConfig, parallel_layout
from megatron_fork.models import ComputeConfig, PackedRow, StatisticsModel, build, build_chunks
from megatron_fork.models.attention import PackedAttention
from megatron_fork.models.layers.packed_row import positions

pytestmark = pytest.mark.gpu

LENGTHS = (16, 16, 40, 8)
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"num_key_value_heads": 2}),
    "qwen3, yarn": ("qwen3", {"rope_parameters": YARN}),
    "qwen2": ("qwen2", {}),
    "llama": ("llama", {}),
    "experts": ("qwen3_moe", {}),
}
# Of the largest value: different orders of the same sums.
CLOSE = {torch.float32: 3e-6, torch.bfloat16: 4e-2}


class TorchNorm(nn.RMSNorm):
    """Torch's module, as Megatron's layers call it."""

    def __init__(self, config: Any, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def megatron_s_own(config: Any) -> Any:
    """The layer as Megatron specifies it, with torch's norm and this project's attention."""
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, qk_layernorm=config.qk_layernorm, normalization=config.normalization
    )
    parts: Any = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = TorchNorm
    attention = parts.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = TorchNorm
    return layer


def model_of(
    name: str, parallel: ParallelConfig, dtype: torch.dtype, compute: ComputeConfig, *, own: bool
) -> StatisticsModel:
    """With weights that depend on nothing but their names."""
    family, fields = MODELS[name]
    with pytest.MonkeyPatch.context() as patch:
        if own:
            patch.setattr(build, "local_layer", megatron_s_own)
        (model,) = build_chunks(family_config(family, **fields), parallel, dtype=dtype, compute=compute)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in sorted(model.named_parameters()):
        drawn = torch.rand(parameter.shape, generator=generator) - 0.5
        parameter.data = (drawn + 1.0 if "norm" in key else drawn * 0.4).to(DEVICE, dtype)
    return model


def passed(model: StatisticsModel, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor], int]:
    """Log-probs of every token, gradients of every parameter, and the bytes that were kept between the two."""
    context = model.pg_collection.cp
    position_t = positions(LENGTHS, context.rank(), context.size())
    tokens = len(position_t)
    generator = torch.Generator().manual_seed(1)
    token_1t = torch.randint(0, 61, (1, tokens), generator=generator).to(DEVICE)
    cumulative = torch.tensor([0, *LENGTHS]).cumsum(0).to(DEVICE, torch.int32)
    row = PackedRow.of(LENGTHS, cumulative, position_t.to(DEVICE))
    wrapped = model if dtype == torch.float32 else Float16Module(model.config, model)
    saved = Saved(model)
    with saved.hooks():
        logprob, entropy = wrapped(
            token_1t,
            position_t[None].to(DEVICE),
            None,
            labels=token_1t.roll(-1, 1),
            loss_mask=torch.ones_like(token_1t, dtype=torch.bool),
            packed_seq_params=row,
        )
    kept = saved.bytes
    (logprob.sum() + 0.3 * entropy.sum()).backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return logprob.detach(), gradients, kept


def compare(name: str, fields: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]) -> tuple[int, int]:
    """Bytes kept by these layers and by Megatron's; asserts that results are close."""
    distributed.initialize()
    with parallel_layout(ParallelConfig(**fields)) as layout:
        compute = ComputeConfig(backend="local", **options)
        logprob, gradients, kept = passed(model_of(name, layout.config, dtype, compute, own=False), dtype)
        reference = model_of(name, layout.config, dtype, ComputeConfig(backend="local"), own=True)
        wanted, wanted_gradients, kept_before = passed(reference, dtype)
    torch.testing.assert_close(logprob, wanted, rtol=0.0, atol=CLOSE[dtype] * wanted.abs().max().item())
    assert set(gradients) == set(wanted_gradients)
    for key, gradient in gradients.items():
        scale = max(wanted_gradients[key].abs().max().item(), 1e-3)
        torch.testing.assert_close(gradient, wanted_gradients[key], rtol=0.0, atol=CLOSE[dtype] * scale, msg=key)
    return kept, kept_before


@pytest.mark.parametrize(
    ("name", "recompute", "dtype"),
    [(name, recompute, torch.float32) for name in MODELS for recompute in ("none", "selective")]
    + [("qwen3", "full", torch.float32), ("experts", "full", torch.float32), ("qwen3", "none", torch.bfloat16)],
)
def test_same_as_megatron_s_own_modules(name: str, recompute: str, dtype: torch.dtype) -> None:
    compare(name, {}, dtype, {"recompute": recompute})


def on_a_layout(cases: list[tuple[dict[str, Any], str]]) -> None:
    for fields, recompute in cases:
        compare("qwen3", fields, torch.float32, {"recompute": recompute})


@pytest.mark.slow
def test_same_on_layouts() -> None:
    layouts = [{"tensor": 2}, {"tensor": 2, "sequence": True}, {"context": 2}]
    run_on_ranks(on_a_layout, 2, [(fields, how) for fields in layouts for how in ("none", "selective")])


def test_checkpoints_are_those_of_megatron_s_own_modules() -> None:
    """The same parameters under the same names, and the same sharded entries."""
    distributed.initialize()
    with parallel_layout(ParallelConfig()) as layout:
        ours, theirs = (
            model_of("qwen3", layout.config, torch.float32, ComputeConfig(backend="local"), own=own)
            for own in (False, True)
        )
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert ours.sharded_state_dict().keys() == theirs.sharded_state_dict().keys()


def test_a_row_in_megatron_s_own_words_gives_the_same() -> None:
    """Who has no `PackedRow` passes Megatron's parameters."""
    from megatron.core.packed_seq_params import PackedSeqParams

    distributed.initialize()
    with parallel_layout(ParallelConfig()) as layout, torch.no_grad():
        model = model_of("qwen3", layout.config, torch.float32, ComputeConfig(backend="local"), own=False)
        edges = torch.tensor([0, *LENGTHS]).cumsum(0).to(DEVICE, torch.int32)
        longest = max(LENGTHS)
        theirs = PackedSeqParams("thd", edges, edges, max_seqlen_q=longest, max_seqlen_kv=longest)
        position_t = positions(LENGTHS, 0, 1).to(DEVICE)
        token_1t = torch.arange(sum(LENGTHS), device=DEVICE)[None] % 61
        found, wanted = (
            model(token_1t, position_t[None], None, packed_seq_params=packed)
            for packed in (theirs, PackedRow.of(LENGTHS, edges, position_t))
        )
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("recompute", "part"), [("none", 0.5), ("selective", 0.35)])
def test_half_of_the_memory(recompute: str, part: float) -> None:
    """In bf16, of a row of equal sequences; with the MLP's first product computed again, a third."""
    global LENGTHS
    before, LENGTHS = LENGTHS, (40, 40)
    try:
        kept, kept_before = compare("qwen3", {}, torch.bfloat16, {"recompute": recompute})
    finally:
        LENGTHS = before
    assert kept < part * kept_before
