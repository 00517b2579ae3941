"""What stands beside the weights of a model folder goes along, byte for byte, through training and conversion."""

import json
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, run
from support.tiny_qwen3 import family_config, hugging_face_model

from megatron_fork.conversion import ModelFiles, to_hf, to_megatron
from megatron_fork.data.reach import build_tokenizer
from megatron_fork.models import ModelConfig

BESIDE = {
    "generation_config.json": json.dumps({"temperature": 0.6, "top_k": 20, "eos_token_id": [1], "do_sample": True}),
    "special_tokens_map.json": json.dumps({"eos_token": "<eos>", "pad_token": "<pad>"}),
    "added_tokens.json": "{}",
    "chat_template.jinja": "{# of the publisher #}{% for m in messages %}{{ m.content }} {% endfor %}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "tokenizer.model": "not read by this tokenizer",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    hugging_face_model(
        family_config("qwen3", vocab_size=135, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0)
    ).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    for name, text in BESIDE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def check_all_there(folder: Path, model: Path) -> None:
    for name in (*BESIDE, "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (model / name).read_bytes(), name


def test_files_beside_a_checkpoint(model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    source = ModelConfig(path=str(model))
    files = ModelFiles.of(source, AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model))
    files.write(tmp_path)
    check_all_there(tmp_path, model)


def test_conversion_there_and_back(model: Path, tmp_path: Path) -> None:
    to_megatron(model, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "back")
    check_all_there(tmp_path / "back", model)


@pytest.mark.slow
def test_training_and_conversion_of_its_run(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["model.hf_config=null", f"model.path={model}", "sft.steps=1", "train.steps=1", "rollout.stop_tokens=[]"]
    code, output = run("train", str(QUICKSTART), *TINY, *words, f"run.folder={folder}")
    assert code == 0, output
    check_all_there(folder / "warm_start", model)
    check_all_there(folder / "model", model)
    code, output = run("convert", "to-hf", str(folder), str(tmp_path / "converted"))
    assert code == 0, output
    check_all_there(tmp_path / "converted", model)
