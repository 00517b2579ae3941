"""A conversion that was ended anywhere, by anything, goes on to the same bytes; the work of others is never mixed in."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.tiny_qwen3 import FAMILIES, family_config, hugging_face_model

from megatron_fork.conversion import journal as journal_module
from megatron_fork.conversion import to_hf, to_megatron
from megatron_fork.conversion.journal import JOURNAL
from megatron_fork.errors import CheckpointError, StopRequested

Convert = Callable[..., Any]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By direction and family; Hugging Face folders in several shards."""
    found = {}
    for family in FAMILIES:
        root = tmp_path_factory.mktemp(family)
        model = hugging_face_model(family_config(family, tie_word_embeddings=family == "llama"))
        model.save_pretrained(root / "theirs", max_shard_size="20KB")
        to_megatron(root / "theirs", root / "megatron")
        found["to_megatron", family], found["to_hf", family] = root / "theirs", root / "megatron"
    return found


def conversion(direction: str, dtype: str | None) -> Convert:
    if direction == "to_megatron":
        return partial(to_megatron, dtype=dtype)
    return partial(to_hf, dtype=dtype, shard_bytes=9000)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_after(convert: Convert, source: Path, out: Path, parameters: int, workers: int, flushed: int) -> bool:
    """Convert in a process that ends, without any clean-up, when so many parameters have begun; whether it did."""
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=_ends_after, args=(convert, source, out, parameters, workers, flushed))
    child.start()
    child.join(60)
    assert child.exitcode in (0, 9)
    return child.exitcode == 9


def _ends_after(convert: Convert, source: Path, out: Path, parameters: int, workers: int, flushed: int) -> None:
    journal_module._BYTES_A_FLUSH = flushed
    begun = iter(range(parameters))
    convert(source, out, workers=workers, stop_point=lambda: next(begun, None) is None and os._exit(9))


@settings(max_examples=5, deadline=None)
@given(
    direction=st.sampled_from(["to_megatron", "to_hf"]),
    family=st.sampled_from(list(FAMILIES)),
    dtype=st.sampled_from([None, "bf16", "fp16"]),
    ends=st.lists(st.integers(0, 40), min_size=1, max_size=2),
    flushed=st.sampled_from([1, 5000, 1 << 28]),
    workers=st.integers(1, 3),
    cut=st.integers(0, 200),
)
def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    sources: dict[tuple[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    direction: str,
    family: str,
    dtype: str | None,
    ends: list[int],
    flushed: int,
    workers: int,
    cut: int,
) -> None:
    """Killed once or more, with much or little in the journal, and the journal cut as by a crash of the machine."""
    root, convert, source = tmp_path_factory.mktemp("out"), conversion(direction, dtype), sources[direction, family]
    convert(source, root / "out")
    wanted = content(root / "out")
    shutil.rmtree(root / "out")
    journal = root / "out.partial" / JOURNAL
    for parameters in ends:
        if not killed_after(convert, source, root / "out", parameters, workers, flushed):
            break
        if journal.is_file():
            lines = journal.read_bytes()
            journal.write_bytes(lines[: max(lines.index(b"\n") + 1, len(lines) - cut)])
    else:
        convert(source, root / "out", workers=workers)
    assert content(root / "out") == wanted
    assert not (root / "out.partial").exists()
    shutil.rmtree(root)


@pytest.mark.parametrize("direction", ["to_megatron", "to_hf"])
def test_a_stop_keeps_all_that_was_written(
    direction: str, sources: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    convert, source = conversion(direction, None), sources[direction, "qwen3"]
    began: list[int] = []

    def stop_point() -> None:
        began.append(1)
        if len(began) >= 9:
            raise StopRequested

    with pytest.raises(StopRequested):
        convert(source, tmp_path / "out", workers=1, stop_point=stop_point)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").is_dir()
    seen: list[tuple[int, int]] = []
    done = convert(source, tmp_path / "out", progress=lambda *at: seen.append(at))
    assert done.kept == 8 and len(seen) == seen[-1][0] - 8 and seen[0][0] == 9 and seen[-1][0] == seen[-1][1]


def stopped(convert: Convert, source: Path, out: Path) -> None:
    began = iter(range(9))

    def stop_point() -> None:
        if next(began, None) is None:
            raise StopRequested

    with pytest.raises(StopRequested):
        convert(source, out, stop_point=stop_point)


@pytest.mark.parametrize("direction", ["to_megatron", "to_hf"])
def test_what_was_changed_meanwhile_is_written_again(
    direction: str, sources: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """A flipped bit, a shorter and a longer file, and one that is gone."""
    convert, source = conversion(direction, None), sources[direction, "qwen3"]
    convert(source, tmp_path / "whole")
    wanted = content(tmp_path / "whole")
    stopped(convert, source, tmp_path / "whole2")
    files = sorted(
        path for path in (tmp_path / "whole2.partial").rglob("*") if path.suffix in (".distcp", ".safetensors")
    )
    damages: list[Callable[[Path], Any]] = [
        lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(file.read_bytes() + b"more"),
        lambda file: file.unlink(),
    ]
    for file, damage in zip(files, damages, strict=False):
        damage(file)
    convert(source, tmp_path / "whole2")
    assert content(tmp_path / "whole2") == wanted


def rewrite(source: Path) -> None:
    file = next(source.rglob("*.safetensors"))
    weights = load_file(file)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, file, metadata={"format": "pt"})


def rewrite_config(source: Path) -> None:
    file = next(source.rglob("config.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 1e-5}))


@pytest.mark.parametrize(
    ("direction", "change", "options", "named"),
    [
        ("to_megatron", rewrite, {}, r"the source's model-\S+ is not the same"),
        ("to_megatron", rewrite_config, {}, "the source's config.json is not the same"),
        ("to_hf", rewrite_config, {}, "the source's config.json is not the same"),
        ("to_hf", lambda source: os.utime(next(source.rglob("*.distcp"))), {}, r"the source's \S+ is not the same"),
        ("to_megatron", lambda source: None, {"dtype": "bf16"}, "dtype was None, and is now bf16"),
        ("to_hf", lambda source: None, {"dtype": "bf16"}, "dtype was None, and is now bf16"),
        ("to_hf", lambda source: None, {"shard_bytes": 8000}, "shard_bytes was 5000000000, and is now 8000"),
    ],
)
def test_another_conversion_is_never_mixed_in(
    direction: str,
    change: Callable[[Path], None],
    options: dict[str, Any],
    named: str,
    sources: dict[tuple[str, str], Path],
    tmp_path: Path,
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(sources[direction, "qwen3"], source)
    convert = to_megatron if direction == "to_megatron" else to_hf
    stopped(convert, source, out)
    before = content(tmp_path / "out.partial")
    change(source)
    with pytest.raises(CheckpointError, match=named) as refused:
        convert(source, out, **options)
    assert "--restart" in refused.value.hint and content(tmp_path / "out.partial") == before
    done = convert(source, out, restart=True, **options)
    assert done.kept == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_folder_of_something_else_is_not_touched(sources: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    for direction in ("to_megatron", "to_hf"):
        with pytest.raises(CheckpointError, match=r"holds notes\.txt, and no journal"):
            conversion(direction, None)(sources[direction, "qwen3"], tmp_path / "out")
    assert content(tmp_path) == {"out.partial/notes.txt": b"mine"}


def test_two_at_once_are_told(sources: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    source, told = sources["to_megatron", "qwen3"], []

    def also() -> None:
        if not told:
            with pytest.raises(CheckpointError, match="another conversion is writing") as refused:
                to_megatron(source, tmp_path / "out", restart=True)
            told.append(refused)

    to_megatron(source, tmp_path / "out", stop_point=also, workers=1)
    assert told and (tmp_path / "out").is_dir()


def test_a_source_that_changes_meanwhile_is_an_error(sources: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    shutil.copytree(sources["to_megatron", "qwen3"], tmp_path / "source")
    file = max((tmp_path / "source").glob("*.safetensors"))
    with pytest.raises(CheckpointError, match="the source was changed while it was converted"):
        to_megatron(tmp_path / "source", tmp_path / "out", stop_point=lambda: os.utime(file, (1, 1)))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_weights_that_cannot_be_used_leave_nothing(sources: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    shutil.copytree(sources["to_megatron", "qwen3"], tmp_path / "source")
    file = max((tmp_path / "source").glob("*.safetensors"))
    weights = load_file(file)
    max(weights.values(), key=torch.Tensor.numel).view(-1)[3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="holds NaN"):
        to_megatron(tmp_path / "source", tmp_path / "out", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("direction", ["to_megatron", "to_hf"])
def test_a_full_disk_is_one_line_and_it_goes_on_when_there_is_room(
    direction: str, sources: dict[tuple[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real disk of 1 MiB, which fills up in the middle; and one that is full from the start."""
    monkeypatch.setattr(journal_module, "_BYTES_A_FLUSH", 1)
    disk, source, convert = tmp_path / "disk", sources[direction, "qwen3"], conversion(direction, None)
    convert(source, tmp_path / "whole")
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("making a small disk needs the right to mount")
    try:
        began = iter(range(6))

        def fill() -> None:
            if next(began, None) is None and not (disk / "filler").exists():
                with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                    while True:
                        filler.write(b"x" * 4096)

        with pytest.raises(CheckpointError, match="cannot be written: No space left on device") as full:
            convert(source, disk / "out", workers=1, stop_point=fill)
        assert "free some space" in full.value.hint and "the same command goes on from there" in full.value.hint
        with pytest.raises(
            CheckpointError,
            match=r"cannot be written: (No space left|\S+ \S+ are to be written, and its disk has 0 bytes)",
        ):
            convert(source, disk / "out")
        (disk / "filler").unlink()
        assert convert(source, disk / "out").kept > 0
        assert content(disk / "out") == content(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_after_a_failed_flush_nothing_more_counts_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reports that a file's bytes were lost only once, whoever asks first."""
    journal = journal_module.Journal(tmp_path, {})
    journal.keep_intact(lambda name, part: True, workers=1)
    (tmp_path / "file").write_bytes(b"ab")

    def lost(*of: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal.add("a", journal_module.Part("file", 0, 1, ""))
    with monkeypatch.context() as failing, pytest.raises(OSError, match="Input/output"):
        failing.setattr(journal_module, "flush_files", lost)
        journal.flush()
    with pytest.raises(OSError, match="Input/output"):  # before anything more is written
        journal.add("b", journal_module.Part("file", 1, 1, ""))
    with pytest.raises(OSError, match="Input/output"):
        journal.flush()
    assert not journal.parts and not journal_module.Journal(tmp_path, {}).parts
