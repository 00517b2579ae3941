"""What each part runs: a command of this project's benchmarks or tests, and the same at a CPU's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where a part runs, with a folder of its own; `transformer_engine`: it imports here."""

    python: str
    project: Path
    folder: Path
    smoke: bool
    transformer_engine: bool = False

    def benchmark(self, name: str, *words: str) -> list[str]:
        """It leaves what it finds in the part's folder."""
        file = self.project / "benchmarks" / name
        device = "cpu" if self.smoke else "cuda"
        return [self.python, str(file), "--device", device, *words, "--out", str(self.folder / "found.json")]


Command = Callable[[Place], list[str]]


def by_size(name: str, full: str, smoke: str) -> Command:
    """A benchmark with its words on a GPU and those at a CPU's size."""
    return lambda place: place.benchmark(name, *(smoke if place.smoke else full).split())


def marked_tests(project: Path, *, of_transformer_engine: bool) -> list[str]:
    """Test files with a form for a GPU, those that name Transformer Engine apart. By text: collecting takes longer."""
    texts = {path: path.read_text() for path in sorted((project / "tests").rglob("test_*.py"))}
    marked = [path for path, text in texts.items() if "pytest.mark.gpu" in text]
    chosen = [path for path in marked if ("transformer_engine" in texts[path]) == of_transformer_engine]
    return [str(path.relative_to(project)) for path in chosen]


def tests(place: Place) -> list[str]:
    return _pytest(place, marked_tests(place.project, of_transformer_engine=False))


def transformer_engine_tests(place: Place) -> list[str]:
    return _pytest(place, marked_tests(place.project, of_transformer_engine=True))


def _pytest(place: Place, files: Sequence[str]) -> list[str]:
    # A line a test, as it ends: what ran before a stop is known.
    words = "-o addopts= --strict-markers -v -p no:cacheprovider --color=no -m gpu".split()
    few = ["-k", "on_device or rows_apart"] if place.smoke else []
    return [place.python, "-m", "pytest", *words, *few, *files]


def full_size(words: str) -> Command:
    """With local layers, and with Transformer Engine's where it imports."""
    smoke = "--shape tiny --optimizer none --rounds 1 --response 64"

    def command(place: Place) -> list[str]:
        layers = ["--backend", "local", *(["transformer_engine"] if place.transformer_engine else [])]
        return place.benchmark("full_size.py", *(smoke if place.smoke else words).split(), *layers)

    return command
