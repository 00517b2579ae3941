"""Conversion to Megatron and back: seconds, and peak memory against the size of the checkpoint.

    python benchmarks/conversion.py --layers 8 32 64 --out benchmarks/results/conversion.json
    python benchmarks/conversion.py --layers --families                   # every family, tied and untied
    python benchmarks/conversion.py --folder HF_DIR                       # a model of one's own, with proof of logits

Checkpoints of Qwen3-0.6B's shapes in bfloat16, with more and more layers. Each conversion runs in a process of its own; its
peak is over what the process held before the first tensor. The floor is a copy of the same bytes, flushed to the disk, in the
same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config

from megatron_fork.conversion import to_hf, to_megatron, verify
from megatron_fork.conversion.hugging_face import read_config
from megatron_fork.conversion.parameters import model_entries
from megatron_fork.conversion.shard_locations import meta_model_of
from megatron_fork.conversion.weight_files import Specification, WeightFiles
from megatron_fork.conversion.weight_folder import WeightFolder
from megatron_fork.run.console import quiet_libraries

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.tiny_qwen3 import FAMILIES, family_config, hugging_face_model

DIRECTIONS = ("to_megatron", "to_hf")


def make_model(folder: Path, layers: int) -> int:
    """A Hugging Face folder of random weights, never held as a whole; its bytes."""
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    shapes = {
        "embed_tokens": (151936, 1024),
        "q_proj": (2048, 1024),
        "k_proj": (1024, 1024),
        "v_proj": (1024, 1024),
        "o_proj": (1024, 2048),
        "gate_proj": (3072, 1024),
        "up_proj": (3072, 1024),
        "down_proj": (1024, 3072),
        "q_norm": (128,),
        "k_norm": (128,),
    }
    names = [name for entry in model_entries(config) for name in entry.hugging_face]
    tensors = {name: Specification(torch.bfloat16, shapes.get(name.split(".")[-2], (1024,))) for name in names}
    folder.mkdir()
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(layers)
    with WeightFiles(folder, tensors, shard_bytes=10**9) as files:
        for name, tensor in tensors.items():
            files.write(name, torch.randn(tensor.shape, generator=generator).bfloat16())
    return sum(tensor.bytes for tensor in tensors.values())


def of_family(family: str, tied: bool, work: Path) -> dict[str, Any]:
    """A model of a family there and back, with its proof; it is the tests' tiny one, so its cost is that of any conversion."""
    config = family_config(family, tie_word_embeddings=tied)
    hugging_face_model(config).save_pretrained(work / "theirs")
    result: dict[str, Any] = {"family": family, "tied": tied}
    result["to_megatron"] = in_own_process("to_megatron", work / "theirs", work / "megatron", 2)
    result["to_hf"] = in_own_process("to_hf", work / "megatron", work / "back", 2)
    proof = verify(work / "back", work / "megatron")
    same = same_bits(work / "theirs", work / "back")
    return {**result, "tensors": proof.tensors, "same_bits": same, "holds": proof.holds, "logits": proof.logits}


def convert_in_this_process(direction: str, source: Path, target: Path, workers: int) -> dict[str, Any]:
    quiet_libraries()
    meta_model_of(read_config(source if direction == "to_megatron" else source / "release" / "hugging_face"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, began = resident("VmRSS"), time.monotonic()
    (to_megatron if direction == "to_megatron" else to_hf)(source, target, workers=workers)
    return {"seconds": time.monotonic() - began, "peak_mib": (resident("VmHWM") - before) / 1024}


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def in_own_process(direction: str, source: Path, target: Path, workers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--convert", direction, str(source), str(target), str(workers)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def copied(source: Path, target: Path) -> float:
    """Seconds to copy a folder's weights and bring them to the disk."""
    target.mkdir()
    began = time.monotonic()
    for file in source.glob("*.safetensors"):
        with file.open("rb") as from_file, (target / file.name).open("wb") as to_file:
            shutil.copyfileobj(from_file, to_file, 1 << 24)
            os.fsync(to_file.fileno())
    return time.monotonic() - began


def round_trip(work: Path, layers: int, workers: int) -> dict[str, Any]:
    theirs, megatron, back = work / "theirs", work / "megatron", work / "back"
    result: dict[str, Any] = {"layers": layers, "workers": workers, "gib": make_model(theirs, layers) / 2**30}
    result["copy_seconds"] = copied(theirs, work / "copy")
    shutil.rmtree(work / "copy")
    result["to_megatron"] = in_own_process("to_megatron", theirs, megatron, workers)
    result["to_hf"] = in_own_process("to_hf", megatron, back, workers)
    for direction in DIRECTIONS:
        result[direction]["times_copy"] = result[direction]["seconds"] / result["copy_seconds"]
    result["same_bits"] = same_bits(theirs, back)
    for folder in (theirs, megatron, back):
        shutil.rmtree(folder)
    return result


def same_bits(left: Path, right: Path) -> bool:
    with closing(WeightFolder(left)) as ours, closing(WeightFolder(right)) as theirs:
        return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def of_folder(folder: Path, work: Path) -> dict[str, Any]:
    """A given model there and back, every bit and the logits compared."""
    result: dict[str, Any] = {"model": folder.name}
    for direction, source, target in (
        ("to_megatron", folder, work / "megatron"),
        ("to_hf", work / "megatron", work / "back"),
    ):
        result[direction] = in_own_process(direction, source, target, 2)
    there, back = verify(folder, work / "megatron"), verify(work / "back", work / "megatron")
    return {
        **result,
        "tensors": there.tensors,
        "holds": there.holds and back.holds,
        "logits": [there.logits, back.logits],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="*", default=[8, 32, 64])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--families", action="store_true", help="a small model of every family, tied and untied")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--convert", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        direction, source, target, workers = options.convert
        print(json.dumps(convert_in_this_process(direction, Path(source), Path(target), int(workers))))
        return
    result: dict[str, Any] = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "round_trips": [],
    }
    for layers in options.layers:
        for workers in options.workers:
            with tempfile.TemporaryDirectory() as work:
                result["round_trips"].append(round_trip(Path(work), layers, workers))
            print(json.dumps(result["round_trips"][-1]), flush=True)
    result["families"] = []
    for family in FAMILIES if options.families else ():
        for tied in (False, True):
            with tempfile.TemporaryDirectory() as work:
                result["families"].append(of_family(family, tied, Path(work)))
            print(json.dumps(result["families"][-1]), flush=True)
    if options.folder:
        with tempfile.TemporaryDirectory() as work:
            result["of_folder"] = of_folder(options.folder, Path(work))
        print(json.dumps(result["of_folder"]))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
