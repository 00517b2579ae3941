"""The model family of docs/extending.md, with its one entry, has Hugging Face's logits and Hugging Face's names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.tiny_qwen3 import family_config, hugging_face_model, megatron_model
from transformers import MistralConfig

from megatron_fork.conversion import iter_hf_weights
from megatron_fork.errors import ModelError
from megatron_fork.models import FAMILIES, family_of

PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture
def mistral(monkeypatch: pytest.MonkeyPatch) -> Iterator[MistralConfig]:
    text = (PROJECT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n# mistral\.py\n(.*?)```", text, re.S)
    (architecture, name) = re.findall(r'`"(\w+)": (\w+)`', text)[0]
    module: dict[str, object] = {}
    exec(code, module)
    monkeypatch.setitem(FAMILIES, architecture, module[name])
    monkeypatch.setitem(tiny_families(), "mistral", {"architectures": [architecture], "head_dim": 16})
    yield family_config("mistral", sliding_window=None)


def tiny_families() -> dict[str, dict[str, object]]:
    from support import tiny_qwen3

    return tiny_qwen3.FAMILIES


@torch.no_grad()
def test_logits_and_names(mistral: MistralConfig) -> None:
    theirs = hugging_face_model(mistral)
    weights = dict(theirs.state_dict())
    tokens = torch.randint(0, 61, (2, 25), generator=torch.Generator().manual_seed(4))
    with megatron_model(mistral, weights) as ours:
        found, wanted = ours(tokens, torch.arange(25).expand(2, 25), None), theirs(input_ids=tokens).logits
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=5e-6 * max(1.0, wanted.abs().max().item()))
        written = dict(iter_hf_weights(ours))
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in weights.items())


def test_the_field_that_it_does_not_support_is_named(mistral: MistralConfig) -> None:
    mistral.sliding_window = 8
    with pytest.raises(ModelError, match="sliding_window=8 is not supported for MistralForCausalLM"):
        family_of(mistral)
