"""The first signal stops a run wherever it is, with the exit code of the signal, and started again it is the whole run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, Program, finish, metrics_of, run, start, without_times

# The evaluation takes longest: a signal after what comes before it meets it.
WORDS = (
    *(str(QUICKSTART), *TINY, "train.steps=2", "run.checkpoint_every=1"),
    *("evaluation.every=1", "evaluation.samples=8", "data.held_out=32", "rollout.batch_size=32"),
)
FAR = 60.0


def printed(words: str) -> Callable[[Path, Program], bool]:
    return lambda folder, process: words in Path(process._output.name).read_text()


def written(stage: str, lines: int) -> Callable[[Path, Program], bool]:
    file = "metrics.jsonl"
    return lambda folder, process: (folder / file).is_file() and len(metrics_of(folder, stage)) >= lines


def there(pattern: str) -> Callable[[Path, Program], bool]:
    return lambda folder, process: any(folder.glob(pattern))


def stopped_when(
    reached: Callable[[Path, Program], bool], folder: Path, sent: int, *words: str, ranks: int = 0
) -> tuple[int, str]:
    process = start("train", *WORDS, *words, f"run.folder={folder}", ranks=ranks)
    deadline = time.monotonic() + FAR
    while not reached(folder, process) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, sent)
    return finish(process, limit=FAR)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, output = run("train", *WORDS, f"run.folder={folder}")
    assert code == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reached", "sent", "code", "says"),
    [
        (printed("run folder"), signal.SIGTERM, 75, "nothing had to be saved"),
        (there("warm_start/config.json"), signal.SIGINT, 130, "nothing had to be saved"),
        (written("train", 1), signal.SIGINT, 130, "stopped after step 1 of 2; the state is saved"),
        (there("checkpoints/step-000001.partial"), signal.SIGTERM, 75, "the state is saved"),
        (written("train", 2), signal.SIGTERM, 75, "stopped after step 2 of 2; the state is saved"),
        (there("summary.json"), signal.SIGTERM, 75, "nothing had to be saved"),
    ],
    ids=[
        "loading weights",
        "evaluation before the first step",
        "evaluation after a step",
        "checkpoint",
        "last evaluation",
        "report",
    ],
)
def test_a_stopped_run_is_the_whole_run_once_it_goes_on(
    tmp_path: Path, whole: Path, reached: Callable[[Path, Program], bool], sent: int, code: int, says: str
) -> None:
    folder = tmp_path / "run"
    ended, output = stopped_when(reached, folder, sent)
    assert ended == code, output
    assert says in output and "Traceback" not in output
    for _ in range(2 if "step 2 of 2" in says else 1):  # once more, where an evaluation is due after the checkpoint
        ended, output = run("train", *WORDS, f"run.folder={folder}")
        assert ended == 0, output
    for stage in ("sft", "train", "evaluation"):
        assert without_times(metrics_of(folder, stage)) == without_times(metrics_of(whole, stage))
    assert (folder / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "ranks"), [(signal.SIGTERM, 75, 0), (signal.SIGINT, 130, 0), (signal.SIGTERM, 75, 2)]
)
def test_a_wait_for_servers_says_what_it_waits_for_and_ends_at_once(
    tmp_path: Path, sent: int, code: int, ranks: int
) -> None:
    nobody = "http://127.0.0.1:9"
    ended, output = stopped_when(
        printed("waiting for rollout.servers"),
        tmp_path / "run",
        sent,
        "rollout.engine=vllm",
        f"rollout.servers=[{nobody}]",
        ranks=ranks,
    )
    assert ended == code, output
    assert f"0 of 1800 s: {nobody}" in output and "nothing had to be saved" in output and "Traceback" not in output


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_before_a_run_listens_nothing_is_there(sent: int, code: int) -> None:
    """Imports catch exceptions of every kind, and must not catch this."""
    program = (
        "import time\n"
        "from megatron_fork.cli.guard import stops_at_once\n"
        "stops_at_once()\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    time.sleep(60)\n"
        "except BaseException:\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    _, errors = process.communicate(timeout=FAR)
    assert process.returncode == code
    assert errors == "error: interrupted before there was anything to save\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("within", ["an exit handler", "the end of Python"])
def test_what_is_done_is_not_undone_by_a_signal(sent: int, within: str) -> None:
    """Python drops the handlers of signals when it ends, and a signal then ended a run that was through by its number."""
    program = (
        "import atexit, os, sys\n"
        "class Late:\n"
        f"    def __del__(self, kill=os.kill, process=os.getpid()): kill(process, {int(sent)})\n"
        f"sys.late = {'None' if within == 'an exit handler' else 'Late()'}\n"
        f"if sys.late is None: atexit.register(os.kill, os.getpid(), {int(sent)})\n"
        f"sys.argv = ['megatron-fork', 'train', {str(QUICKSTART)!r}, '--print-config']\n"
        "from megatron_fork.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=FAR)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# ") and "interrupted" not in done.stderr
