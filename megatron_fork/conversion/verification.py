"""Verifies that a Hugging Face folder and a Megatron checkpoint are the same model: names, bits, config and logits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from megatron_fork import distributed
from megatron_fork.checkpoint import require_known_classes
from megatron_fork.cluster import host_memory
from megatron_fork.conversion.agreement import check_folder
from megatron_fork.conversion.config_differences import Difference, argument_differences, config_differences
from megatron_fork.conversion.hugging_face import read_config
from megatron_fork.conversion.located import locate
from megatron_fork.conversion.megatron_weights import MegatronWeights
from megatron_fork.conversion.parameters import unwrap_chunks
from megatron_fork.conversion.published import PublishedWeights
from megatron_fork.errors import CheckpointError, size
from megatron_fork.models import Entry, build_model, count_parameters

# Allows for another order of float32 sums; measured on the families of the tests and on SmolLM2-135M: below 5e-6.
LOGIT_TOLERANCE = 2e-5
PROMPTS = ("The road divided in the wood, and", "Question: what is 17 + 25? Answer:")
_UNTOKENIZED = 24


@dataclass(frozen=True)
class Verification:
    """What was compared, and what differs."""

    tensors: int
    compared_as: str
    different: tuple[str, ...]
    """Names of tensors in which any bit differs."""
    config: tuple[Difference, ...]
    logits: float | None
    """Largest difference of the logits, divided by the largest logit; None if they were not compared."""

    @property
    def holds(self) -> bool:
        """Whether both are the same model and give the same results."""
        is_other = any(each.weight in ("other model", "other results") for each in self.config)
        return not self.different and not is_other and (self.logits is None or self.logits <= LOGIT_TOLERANCE)


def verify(
    hf_dir: Path, megatron_dir: Path, *, prompts: Sequence[str] = PROMPTS, logits: bool = True, workers: int = 2
) -> Verification:
    """Compare the two; raises `CheckpointError` if names or shapes of their tensors differ, or memory lacks for logits.

    Args:
        hf_dir: the Hugging Face folder.
        megatron_dir: any folder that `located.locate` recognises.
        prompts: texts on which logits are compared; without a tokenizer, fixed token ids are used.
        logits: whether to run both models, one after the other, in float32.
        workers: parameters compared at the same time.

    """
    config, located = read_config(hf_dir), locate(megatron_dir)
    if logits:
        _require_memory(config)
    source = MegatronWeights(located, config)
    names, second = check_folder(hf_dir, config).names, SecondReading(hf_dir)
    if names != set(second):
        raise CheckpointError(f"{hf_dir}: two readers find different tensors, first {min(names ^ set(second))}")
    # Not with the reader that conversions use: a fault in it would be on both sides, and nothing would differ.
    published, dtypes = PublishedWeights(second), set()

    def differing(entry: Entry) -> list[str]:
        found = []
        for name, ours in source.read(entry):
            theirs = published[name]
            dtypes.add((theirs.dtype, ours.dtype))
            if not _same_bits(ours, theirs):
                found.append(name)
        return found

    with ThreadPoolExecutor(workers) as pool:
        different = [name for names in pool.map(differing, source.entries) for name in names]
    differences = argument_differences(source.reader.common().get("args"), config)
    if located.model_files is not None:
        differences += config_differences(config, read_config(located.model_files))
    changed = sorted({f"{left} as {right}" for left, right in dtypes if left != right})
    return Verification(
        tensors=len(list(source.hugging_face_names)),
        compared_as=", ".join(changed).replace("torch.", "") or "the dtype that both have",
        different=tuple(different),
        config=tuple(differences),
        logits=_logit_difference(hf_dir, located.folder, config, prompts) if logits else None,
    )


def _require_memory(config: PretrainedConfig) -> None:
    """Raise `CheckpointError` where a model in float32 does not fit what is free: the system would kill the process."""
    needed, available = count_parameters(config) * torch.float32.itemsize, host_memory().available
    if needed > available:
        raise CheckpointError(
            f"the logits need {size(needed)} of memory, a model in float32, and {size(available)} are available",
            hint="compare everything else with --no-logits, or take a machine with more",
        )


def _same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Whether both are equal bit for bit; if their dtypes differ, after rounding to the narrower one."""
    narrow = min((ours.dtype, theirs.dtype), key=lambda dtype: (dtype.itemsize, str(dtype)))
    bits = torch.int16 if narrow.itemsize == 2 else torch.int32
    left, right = (tensor.to(narrow).contiguous().view(bits) for tensor in (ours, theirs))
    return torch.equal(left, right)


def _logit_difference(hf_dir: Path, megatron: Path, config: PretrainedConfig, prompts: Sequence[str]) -> float:
    rows = [torch.tensor([ids]) for ids in _token_ids(hf_dir, config, prompts)]
    theirs = _of_hugging_face(hf_dir, rows)
    ours = _of_megatron(megatron, config, rows)
    pairs = list(zip(ours, theirs, strict=True))
    # torch's maximum, since it keeps a NaN.
    size = torch.stack([reference.abs().max() for _, reference in pairs]).max()
    largest = torch.stack([(found - reference).abs().max() for found, reference in pairs]).max()
    return float(largest / size.clamp(min=1e-30))


def _token_ids(hf_dir: Path, config: PretrainedConfig, prompts: Sequence[str]) -> list[list[int]]:
    found = [_tokens(hf_dir, prompt) for prompt in prompts]
    if all(found):
        return found
    if tuple(prompts) != PROMPTS:
        unread = next(prompt for prompt, ids in zip(prompts, found, strict=True) if not ids)
        raise CheckpointError(
            f"{hf_dir} has no tokenizer that reads the prompt {unread!r}", hint="without --prompt, fixed ids are used"
        )
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(config.vocab_size, (_UNTOKENIZED,), generator=generator).tolist() for _ in prompts]


def _tokens(hf_dir: Path, prompt: str) -> list[int]:
    """The prompt's tokens; empty if the folder has no tokenizer, or one whose vocabulary does not have the words."""
    if not any((hf_dir / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return []
    try:
        tokenizer = AutoTokenizer.from_pretrained(hf_dir, trust_remote_code=False)
        return list(tokenizer(prompt)["input_ids"])
    except Exception:  # tokenizers raise this very class
        return []


@torch.no_grad()
def _of_hugging_face(hf_dir: Path, rows: Sequence[Tensor]) -> list[Tensor]:
    model = AutoModelForCausalLM.from_pretrained(
        hf_dir, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    return [model(row).logits.float() for row in rows]


@torch.no_grad()
def _of_megatron(folder: Path, config: PretrainedConfig, rows: Sequence[Tensor]) -> list[Tensor]:
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        model = build_model(config, layout.config).eval()
        load_megatron(model, folder)
        found = []
        for row in rows:
            row = row.to(distributed.device())
            positions = torch.arange(row.shape[1], device=row.device)[None]
            found.append(model(row, positions, None).float().cpu())
        return found


def load_megatron(model: nn.Module | Sequence[nn.Module], folder: Path) -> None:
    """Fill this rank's part of a model from a `torch_dist` folder of any layout; every rank must call it.

    Weights of another dtype are converted. Raises `CheckpointError` if the checkpoint does not belong to this model.
    """
    require_known_classes(folder)
    for chunk in unwrap_chunks(model):
        state = chunk.sharded_state_dict()
        try:
            loaded = dist_checkpointing.load({"model": state}, str(folder))["model"]
        except (CheckpointingException, CheckpointException, KeyError, RuntimeError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise CheckpointError(
                f"{folder} does not fit this model: {lines[-1] if lines else error!r}",
                hint="config.json belongs to another model",
            ) from error
        chunk.load_state_dict(loaded)


class SecondReading(Mapping[str, Tensor]):
    """Tensors as the safetensors library reads them, each from the file that the index names; one in memory at a time.

    For a folder that `check_folder` has accepted: faults of files and index have been raised there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._file_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
        else:
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                self._file_of = dict.fromkeys(file.keys(), "model.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        # Opened for each tensor: what was read of a file that stays mapped counts as this process's memory.
        with safe_open(self._folder / self._file_of[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)
