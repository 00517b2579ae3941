"""What workers hold that share every layer adds up to Hugging Face's tensors, in the words in which engines describe layers."""

from types import SimpleNamespace

import pytest
import torch

from megatron_fork.serving import checksum
from megatron_fork.serving.held import HeldPart, held_parts

MASK = (1 << 64) - 1
WIDTH, WIDE, HEAD, HEADS, KEYS, VOCABULARY = 64, 128, 16, 4, 2, 50
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, WIDTH),
    "model.layers.0.self_attn.q_proj.weight": (HEADS * HEAD, WIDTH),
    "model.layers.0.self_attn.q_proj.bias": (HEADS * HEAD,),
    "model.layers.0.self_attn.k_proj.weight": (KEYS * HEAD, WIDTH),
    "model.layers.0.self_attn.k_proj.bias": (KEYS * HEAD,),
    "model.layers.0.self_attn.v_proj.weight": (KEYS * HEAD, WIDTH),
    "model.layers.0.self_attn.v_proj.bias": (KEYS * HEAD,),
    "model.layers.0.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
    "model.layers.0.mlp.gate_proj.weight": (WIDE, WIDTH),
    "model.layers.0.mlp.up_proj.weight": (WIDE, WIDTH),
    "model.layers.0.mlp.down_proj.weight": (WIDTH, WIDE),
    "model.layers.0.input_layernorm.weight": (WIDTH,),
}


def layer(weight: torch.Tensor, bias: torch.Tensor | None = None, **described) -> torch.nn.Module:
    made = torch.nn.Module()
    made.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        made.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    for name, value in described.items():
        setattr(made, name, value)
    return made


def fused(
    whole: dict[str, torch.Tensor], names: list[str], kind: str, rank: int, size: int, replicas: int
) -> list[torch.Tensor]:
    pieces = []
    for place, name in enumerate(names):
        parts = max(1, size // (replicas if place else 1))
        pieces.append(whole[f"{name}.{kind}"].chunk(parts)[rank // (replicas if place else 1)])
    return pieces


def worker(whole: dict[str, torch.Tensor], rank: int, size: int) -> torch.nn.Module:
    """One of `size` that share the layers, as vLLM cuts them; keys are held twice where there are more workers than keys."""
    before, replicas = "model.layers.0", max(1, size // KEYS)
    qkv = [f"{before}.self_attn.{part}_proj" for part in "qkv"]
    weights, biases = (fused(whole, qkv, kind, rank, size, replicas) for kind in ("weight", "bias"))
    both = fused(whole, [f"{before}.mlp.{part}_proj" for part in ("gate", "up")], "weight", rank, size, 1)
    output = whole[f"{before}.self_attn.o_proj.weight"].chunk(size, 1)[rank]
    down = whole[f"{before}.mlp.down_proj.weight"].chunk(size, 1)[rank]
    rows = -(-VOCABULARY // size)
    start, end = min(VOCABULARY, rows * rank), min(VOCABULARY, rows * (rank + 1))
    padded = torch.cat([whole["model.embed_tokens.weight"][start:end], torch.ones(rows - (end - start), WIDTH)])
    columns = {"tp_rank": rank, "input_size": WIDTH, "input_size_per_partition": WIDTH}
    attention, mlp, first, body, model = (torch.nn.Module() for _ in range(5))
    attention.qkv_proj = layer(
        torch.cat(weights),
        torch.cat(biases),
        output_partition_sizes=[len(each) for each in weights],
        output_size=sum(len(whole[f"{name}.weight"]) for name in qkv) if replicas == 1 else 10**6,
        num_kv_head_replicas=replicas,
        **columns,
    )
    attention.o_proj = layer(
        output, tp_rank=rank, input_size=HEADS * HEAD, input_size_per_partition=HEADS * HEAD // size
    )
    mlp.gate_up_proj = layer(
        torch.cat(both), output_partition_sizes=[len(each) for each in both], output_size=2 * WIDE, **columns
    )
    mlp.down_proj = layer(down, tp_rank=rank, input_size=WIDE, input_size_per_partition=WIDE // size)
    first.self_attn, first.mlp = attention, mlp
    first.input_layernorm = layer(whole[f"{before}.input_layernorm.weight"])
    body.embed_tokens = layer(
        padded, shard_indices=SimpleNamespace(org_vocab_start_index=start, num_org_elements=end - start)
    )
    body.layers = torch.nn.ModuleList([first])
    model.model, model.lm_head = body, body.embed_tokens
    return model


@pytest.fixture
def whole() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def summed(parts: list[HeldPart]) -> dict[str, int]:
    """By place: the sum over parts, each extent once."""
    found: dict[str, dict[tuple, int]] = {}
    for part in parts:
        tensor, place, _, *extent, total = part.fields
        found.setdefault(f"{place} of {tensor}", {})[tuple(extent)] = int(str(total), 16)
    return {place: sum(sums.values()) & MASK for place, sums in found.items()}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_all_workers_are_the_whole_tensors(whole: dict[str, torch.Tensor], size: int) -> None:
    parts = [part for rank in range(size) for part in held_parts(worker(whole, rank, size))]
    expected = {f"{name} of {name}": checksum(tensor) for name, tensor in whole.items()}
    embedding = "model.embed_tokens.weight"
    assert summed(parts) == expected | {f"lm_head.weight of {embedding}": checksum(whole[embedding])}
    outlines = [part for rank in range(size) for part in held_parts(worker(whole, rank, size), outline=True)]
    assert [part.outline for part in outlines] == [part.outline for part in parts]


def test_a_layer_that_computes_with_another_copy_is_seen_through(whole: dict[str, torch.Tensor]) -> None:
    """Its own parameter may be gone, or new while the copy is old."""
    model = worker(whole, 0, 1)
    down = model.model.layers[0].mlp.down_proj
    old = down.weight.detach().clone() + 1
    down.output_partition_sizes = [WIDTH]
    down.output_size = WIDTH
    name = "model.layers.0.mlp.down_proj.weight"
    for own in (down.weight.detach(), torch.empty(0)):
        down.weight = torch.nn.Parameter(own, requires_grad=False)
        down.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, old, bias)
        sums = summed(list(held_parts(model)))
        assert sums[f"{name} of {name}"] == checksum(old) != checksum(whole[name])


def test_what_nobody_can_look_into_is_left_out(whole: dict[str, torch.Tensor]) -> None:
    model = worker(whole, 0, 1)
    model.model.layers[0].mlp.down_proj.use_intel_amx_backend = True
    assert "model.layers.0.mlp.down_proj.weight" not in {part.tensor for part in held_parts(model)}


def test_experts_are_cut_back() -> None:
    model, experts = torch.nn.Module(), torch.nn.Module()
    both, down = torch.randn(3, 2 * WIDE, WIDTH), torch.randn(3, WIDTH, WIDE)
    experts.w13_weight, experts.w2_weight = torch.nn.Parameter(both), torch.nn.Parameter(down)
    model.experts = experts
    sums = summed(list(held_parts(model)))
    assert len(sums) == 9
    assert sums["experts.2.up_proj.weight of experts.2.up_proj.weight"] == checksum(both[2, WIDE:])
    assert sums["experts.1.down_proj.weight of experts.1.down_proj.weight"] == checksum(down[1])
