"""Python that lies in the folder of a model is not run, not even where somebody would say yes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_qwen3 import family_config, hugging_face_model

from megatron_fork.conversion import read_config, to_megatron, verify
from megatron_fork.errors import MegatronForkError

CODE = """
import os
os.mkdir(MARKER)
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class StrangeConfig(PretrainedConfig):
    model_type = "strange"
class StrangeTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with code beside it; whoever is asked at the keyboard agrees."""
    hugging_face_model(family_config("qwen3")).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "strange.py").write_text(CODE.replace("MARKER", repr(str(tmp_path / "marker"))))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    return tmp_path / "model"


def strange_config(folder: Path) -> None:
    file = folder / "config.json"
    names = {"model_type": "strange", "auto_map": {"AutoConfig": "strange.StrangeConfig"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))


def strange_tokenizer(folder: Path) -> None:
    names = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["strange.StrangeTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


@pytest.mark.parametrize("opener", [read_config, lambda folder: to_megatron(folder, folder.parent / "out")])
def test_no_config_of_its_own(opener: Callable[[Path], object], folder: Path) -> None:
    strange_config(folder)
    with pytest.raises(MegatronForkError, match=r"config\.json") as caught:
        opener(folder)
    assert caught.value.hint
    assert not (folder.parent / "marker").exists()


def test_no_tokenizer_of_its_own(folder: Path) -> None:
    to_megatron(folder, folder.parent / "megatron")
    strange_tokenizer(folder)
    verify(folder, folder.parent / "megatron")
    assert not (folder.parent / "marker").exists()
