"""A response is drawn for nothing no longer than it must: a disk that is full is told at the next response that arrives."""

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.echo_engine import Echo

from megatron_fork.data import tokenizer_of_task
from megatron_fork.errors import TraceError
from megatron_fork.evaluation import Drawing, EvaluationFolder, Problem, Wanted
from megatron_fork.experience import Prompt
from megatron_fork.rollout import Completion, Request, RolloutConfig
from megatron_fork.traces import Origin, TokenTexts

BATCH, BATCHES = 8, 3


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """No file of this process grows beyond `most` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Counting(Echo):
    """Before each response but the first batch's, it waits until the files before it are written, or cannot be."""

    def __init__(self, is_written: Callable[[], bool]) -> None:
        self.version, self.drawn, self._is_written = 0, 0, is_written

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            deadline = time.monotonic() + 60
            while self.drawn >= BATCH and not self._is_written() and time.monotonic() < deadline:
                time.sleep(0.001)
            self.drawn += 1
            yield completion


@pytest.mark.parametrize("engine", ["embedded", "vllm_colocated", "vllm"])
def test_a_full_disk_is_told_at_the_next_response(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "megatron_fork.evaluation.drawing.WRITE_TOKENS", 4 * BATCH - 1
    )  # for servers: after 8 responses
    config = RolloutConfig(engine=engine, batch_size=BATCH, max_response_tokens=4)
    prompt = Prompt(0, "from 3 to 5 :", (5, 6, 7, 8), "5")
    wanted = [Wanted(Problem("set", "one", prompt), sample) for sample in range(BATCH * BATCHES)]
    folder = EvaluationFolder(tmp_path, 0, Origin())
    drawing = Drawing(
        Counting(lambda: drawing._written is None or drawing._written.done()),
        config,
        None,
        TokenTexts(tokenizer_of_task("reach")),
        None,
        0,
        "generated",
        folder.keep,
    )
    with (
        small_disk(512),
        pytest.raises(TraceError, match=r"part-00000-0.parquet cannot be written: .*[Ff]ile") as raised,
    ):
        drawing.draw(wanted)
    assert raised.value.hint and drawing.engine.drawn <= BATCH + 1
    assert not list((tmp_path / "traces").iterdir())
