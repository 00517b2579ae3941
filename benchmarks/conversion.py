"""Conversion to Megatron and back: seconds, and peak memory against the size of the checkpoint.

    python benchmarks/conversion.py --layers 8 32 64 --out benchmarks/results/conversion.json
    python benchmarks/conversion.py --layers --families                   # every family, tied and untied
    python benchmarks/conversion.py --folder HF_DIR                       # a model of one's own, with proof of logits
    python benchmarks/conversion.py --layers --shape 8b --work DIR        # Qwen3-8B's shapes, with kills; needs 40 GB of disk

Checkpoints of Qwen3-0.6B's shapes in bfloat16, with more and more layers. Each conversion runs in a process of its own; its
peak is over what the process held before the first tensor. The floor is a copy of the same bytes, flushed to the disk, in the
same run.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config

from megatron_fork.conversion import to_hf, to_megatron, verify
from megatron_fork.conversion.agreement import model_shapes
from megatron_fork.conversion.hugging_face import read_config
from megatron_fork.conversion.journal import JOURNAL
from megatron_fork.conversion.shard_locations import meta_model_of
from megatron_fork.conversion.weight_files import Specification, WeightFiles
from megatron_fork.conversion.weight_folder import WeightFolder
from megatron_fork.run.console import quiet_libraries

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.tiny_qwen3 import FAMILIES, family_config, hugging_face_model

DIRECTIONS = ("to_megatron", "to_hf")


SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}


def config_of(shape: str, **fields: Any) -> Qwen3Config:
    """A config of Qwen3's shapes; the smaller ones tie their embeddings."""
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=shape == "0.6b",
        dtype="bfloat16",
        **{**SHAPES[shape], **fields},
    )


def make_model(folder: Path, config: Qwen3Config, shard_bytes: int) -> int:
    """A Hugging Face folder of random weights, never held as a whole; its bytes."""
    tensors = {name: Specification(torch.bfloat16, shape) for name, shape in model_shapes(config).items()}
    folder.mkdir()
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(config.num_hidden_layers)
    with WeightFiles(folder, tensors, shard_bytes=shard_bytes) as files:
        for name, tensor in tensors.items():
            files.write(name, torch.empty(tensor.shape, dtype=tensor.dtype).normal_(0, 0.02, generator=generator))
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


def measured_in_this_process(work: str, source: Path, target: Path, workers: int) -> dict[str, Any]:
    quiet_libraries()
    meta_model_of(read_config(source if work != "to_hf" else source / "release" / "hugging_face"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, began = resident("VmRSS"), time.monotonic()
    result: dict[str, Any] = {}
    if work == "verify":
        result["holds"] = verify(source, target, logits=False, workers=workers).holds
    else:
        converted = (to_megatron if work == "to_megatron" else to_hf)(source, target, workers=workers)
        result["kept"] = converted.kept
    return {**result, "seconds": time.monotonic() - began, "peak_mib": (resident("VmHWM") - before) / 1024}


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def in_own_process(work: str, source: Path, target: Path, workers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--convert", work, str(source), str(target), str(workers)]
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}  # as the command line does
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
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


def at_size(work: Path, shape: str) -> dict[str, Any]:
    """A model of a published size there and back, and once more with a signal and a kill in between.

    The disk holds two copies at a time. The floor is one file copied and flushed, before and after each conversion. Both read
    from the disk: what memory holds of their source is dropped before.
    """
    theirs, megatron, back = work / "theirs", work / "megatron", work / "back"
    make_model(theirs, config_of(shape), 5 * 10**9)
    files = sorted(theirs.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    result: dict[str, Any] = {"shape": shape, "gb": total / 1e9, "files": len(files), "workers": 2}
    result["to_megatron"] = beside_a_copy("to_megatron", theirs, megatron, total, files[0])
    result["verify_without_logits"] = in_own_process("verify", theirs, megatron, 2)
    once = json.loads((megatron / "release" / "manifest.json").read_text())
    shutil.rmtree(megatron)
    result["interrupted"] = interrupted(theirs, megatron, total)
    again = json.loads((megatron / "release" / "manifest.json").read_text())
    result["interrupted"]["same_bits_as_uninterrupted"] = once == again
    checksums = {file.name: checksum(file) for file in files}
    for file in files[1:]:
        file.unlink()
    result["to_hf"] = beside_a_copy("to_hf", megatron, back, total, files[0])
    result["to_hf"]["same_files"] = checksums == {file.name: checksum(file) for file in back.glob("*.safetensors")}
    for folder in (theirs, megatron, back):
        shutil.rmtree(folder)
    return result


def beside_a_copy(direction: str, source: Path, target: Path, total: int, file: Path) -> dict[str, Any]:
    rates = [copy_rate(file, target.parent / "copy")]
    load = os.getloadavg()[0]
    leave_to_the_disk(each for each in source.rglob("*") if each.is_file())
    result = in_own_process(direction, source, target, 2)
    rates.append(copy_rate(file, target.parent / "copy"))
    result["gb_per_second"] = total / 1e9 / result["seconds"]
    result["copies_gb_per_second"] = rates
    result["of_copy"] = result["gb_per_second"] / (sum(rates) / 2)
    result["load"] = [load, os.getloadavg()[0]]
    print(json.dumps({direction: result}), flush=True)
    return result


def leave_to_the_disk(files: Iterable[Path]) -> None:
    """Nothing of the files stays in memory: what reads them next reads the disk."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_rate(file: Path, target: Path) -> float:
    """GB/s to copy a file from the disk and back to it."""
    leave_to_the_disk([file])
    began = time.monotonic()
    with file.open("rb") as from_file, target.open("wb") as to_file:
        shutil.copyfileobj(from_file, to_file, 1 << 24)
        os.fsync(to_file.fileno())
    seconds = time.monotonic() - began
    target.unlink()
    return file.stat().st_size / 1e9 / seconds


def interrupted(source: Path, target: Path, total: int) -> dict[str, Any]:
    """A conversion by the command line that gets SIGTERM at a quarter, is killed at a half, and then goes on to its end."""
    command = [sys.executable, "-m", "megatron_fork", "convert", "to-megatron", str(source), str(target)]
    journal = target.with_name(target.name + ".partial") / JOURNAL
    began, codes, said = time.monotonic(), [], ""
    for number, fraction in ((signal.SIGTERM, 0.25), (signal.SIGKILL, 0.5), (None, 1.0)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while number is not None and process.poll() is None and journal_bytes(journal) < fraction * total:
            time.sleep(0.2)
        if number is not None:
            process.send_signal(number)
        said = process.communicate()[0]
        codes.append(process.returncode)
    seconds = time.monotonic() - began
    result = {"seconds": seconds, "exit_codes": codes, "said": said.strip().splitlines()[-1].rpartition(": ")[2]}
    print(json.dumps({"interrupted": result}), flush=True)
    return result


def journal_bytes(journal: Path) -> int:
    if not journal.is_file():
        return 0
    return sum(int(found) for found in re.findall(r'"bytes": (\d+)', journal.read_text()))


def checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def round_trip(work: Path, layers: int, workers: int) -> dict[str, Any]:
    theirs, megatron, back = work / "theirs", work / "megatron", work / "back"
    config = config_of("0.6b", num_hidden_layers=layers)
    result: dict[str, Any] = {"layers": layers, "workers": workers, "gib": make_model(theirs, config, 10**9) / 2**30}
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
    parser.add_argument("--shape", choices=SHAPES, help="a model of this published size")
    parser.add_argument("--work", type=Path, help="folder for it, on the disk to be measured")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--convert", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        direction, source, target, workers = options.convert
        print(json.dumps(measured_in_this_process(direction, Path(source), Path(target), int(workers))))
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
    if options.shape:
        if options.work:
            options.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            result["at_size"] = at_size(Path(work), options.shape)
        print(json.dumps(result["at_size"]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
