"""The count of floating-point operations is what torch counts of the same model of transformers, forward and backward."""

from types import SimpleNamespace

import pytest
import torch
from support.tiny_qwen3 import FAMILIES, family_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from megatron_fork import distributed
from megatron_fork.distributed import peak_flops
from megatron_fork.experience import Prompt, Trajectory, logprob_array, token_array
from megatron_fork.models import training_flops
from megatron_fork.run.record import utilization


@pytest.mark.parametrize("length", [5, 48])
@pytest.mark.parametrize("family", [name for name in FAMILIES if "moe" not in name.lower()])
def test_as_torch_counts(family: str, length: int) -> None:
    config = family_config(family)
    config._attn_implementation = "eager"  # whose products are all seen
    model = AutoModelForCausalLM.from_config(config).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(length)[None] % config.vocab_size).logits.sum().backward()
    # The embedding is looked up, and counted as a product.
    looked_up = 6 * config.vocab_size * config.hidden_size * length
    assert training_flops(config, [length]) == counter.get_total_flops() + looked_up


def test_sequences_add_up_and_experts_count_where_they_are_chosen() -> None:
    config = family_config(next(name for name in FAMILIES if "moe" in name.lower()))
    one = training_flops(config, [7])
    assert training_flops(config, [7, 7, 7]) == 3 * one
    few = family_config(next(name for name in FAMILIES if "moe" in name.lower()))
    few.num_experts_per_tok = config.num_experts_per_tok - 1
    expert = 3 * config.hidden_size * config.moe_intermediate_size * config.num_hidden_layers
    assert one - training_flops(few, [7]) == 6 * 7 * expert


def test_peaks_are_of_the_gpus_that_data_sheets_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA H20") == 148e12
    assert peak_flops("NVIDIA GB200") == 2.5e15 and peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("Another 9000") is None


def test_utilization_is_the_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restated: on two GPUs at half of their peak each for two seconds the share is one half."""
    config = family_config("qwen3")
    prompt = Prompt(0, "", (1, 2, 3), "")
    trained = [
        Trajectory(number, prompt, token_array([5] * 4), logprob_array([0.0] * 4), "stop", 0) for number in (0, 1)
    ]
    flops = training_flops(config, [7, 7])
    context = SimpleNamespace(hf_config=config, layout=SimpleNamespace(world=SimpleNamespace(size=lambda: 2)))
    assert utilization(context, trained, 2.0) == {}  # a CPU's peak is not known
    monkeypatch.setattr(distributed, "peak_flops", lambda: flops / 2.0)
    assert utilization(context, trained, 2.0) == {"update/mfu": pytest.approx(0.5)}
    assert utilization(context, trained, 0.0) == {}
