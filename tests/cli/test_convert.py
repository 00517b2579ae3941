"""`megatron-fork convert`: the checkpoint of a run on two ranks becomes the model that it wrote; what cannot be is one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import QUICKSTART, TINY, run


@pytest.mark.slow
def test_a_run_is_converted_and_proved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [str(QUICKSTART), *TINY, "train.steps=1", "parallel.tensor=2", f"run.folder={folder}"]
    code, output = run("train", *words, ranks=2)
    assert code == 0, output
    model, converted = folder / "model", tmp_path / "converted"
    code, output = run("convert", "to-hf", str(folder), str(converted))
    assert code == 0, output
    ours, theirs = (load_file(each / "model.safetensors") for each in (converted, model))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (converted / "tokenizer.json").read_text() == (model / "tokenizer.json").read_text()

    code, output = run("convert", "verify", str(model), str(folder))
    assert code == 0, output
    assert "the same model" in output and "no field differs" in output

    code, output = run("convert", "verify", str(folder / "warm_start"), str(folder), "--no-logits")
    assert code == 1, output
    assert "differs: model.embed_tokens.weight" in output and "not the same model" in output
    assert "Traceback" not in output

    code, output = run("convert", "to-megatron", str(model), str(tmp_path / "megatron"), "--dtype", "bf16")
    assert code == 0, output
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").read_text() == "release\n"

    for words, named in (
        (("to-hf", str(folder), str(converted)), "exists already"),
        (("to-hf", str(model), str(tmp_path / "other")), "holds Hugging Face safetensors, not a Megatron checkpoint"),
        (("to-megatron", str(tmp_path / "nothing"), str(tmp_path / "other")), "is not a folder"),
        (("to-megatron", str(model), str(tmp_path / "other"), "--dtype", "fp8"), "--dtype fp8 is not known"),
    ):
        code, output = run("convert", *words)
        assert code != 0 and named in output and "Traceback" not in output, output
        assert not (tmp_path / "other").exists()
