import pytest
import torch
from support.commands import QUICKSTART
from transformers import AutoModelForCausalLM

from megatron_fork import data
from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.rollout import EmbeddedEngine


@pytest.fixture(scope="module")
def parts():
    config = load_config(QUICKSTART)
    hf_config = resolve_config(config.model)
    source = data.load_prompts(config.data, None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_config)
    engine = EmbeddedEngine(
        hf_config, stop_tokens=(1,), pad_token=0, batch_size=64, device=torch.device("cpu"), dtype=torch.float32
    )
    engine.update_weights(model.named_parameters(), 0)
    return source, engine
