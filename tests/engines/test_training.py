"""Whole runs through servers: their log-probs stay the trainer's, on one rank and on two; one that loses them is saved."""

import json
import math
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from commands import QUICKSTART, TINY, finish, metrics_of, run, start

LEARN = ["evaluation.every=0"]
BOTH = pytest.mark.parametrize("server", ["vllm tied", "sglang tied"], indirect=True, scope="session")


def words(server, folder: Path, sync: str) -> list[str]:
    engine = [f"rollout.engine={server.engine}", f"rollout.servers=[{server.server.url}]", f"rollout.sync={sync}"]
    return ["train", str(QUICKSTART), *TINY, *engine, f"run.folder={folder}"]


def steps_of(folder: Path) -> list[dict[str, float]]:
    steps = metrics_of(folder, "train")
    assert all(step["mismatch/max"] < 1e-4 for step in steps)
    return steps


@BOTH
@pytest.mark.parametrize("sync", [pytest.param("disk", marks=pytest.mark.slow), "gloo"])
def test_quickstart(server, tmp_path: Path, sync: str) -> None:
    code, output = run(*words(server, tmp_path / "run", sync), limit=400.0)
    assert code == 0, output
    assert len(steps_of(tmp_path / "run")) == 4
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, float]]:
    """A finished warm start, as a run names it, and what the embedded engine's run from it reached."""
    folder = tmp_path_factory.mktemp("learned")
    code, output = run("train", str(QUICKSTART), "train.steps=0", f"run.folder={folder / 'warm'}", limit=900.0)
    assert code == 0, output
    start = ["sft.steps=0", "model.hf_config=null", f"model.path={folder / 'warm' / 'warm_start'}", *LEARN]
    code, output = run("train", str(QUICKSTART), *start, f"run.folder={folder / 'run'}", limit=900.0)
    assert code == 0, output
    return start, json.loads((folder / "run" / "summary.json").read_text())


@pytest.mark.slow
@BOTH
def test_it_learns_as_much_as_with_the_embedded_engine(server, learned, tmp_path: Path) -> None:
    """Held-out pass rates of independent runs: within four standard errors, and far above the warm start's."""
    start, embedded = learned
    engine = [f"rollout.engine={server.engine}", f"rollout.servers=[{server.server.url}]", "rollout.sync=gloo"]
    code, output = run("train", str(QUICKSTART), *start, *engine, f"run.folder={tmp_path / 'run'}", limit=1800.0)
    assert code == 0, output
    steps_of(tmp_path / "run")
    served = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert served["pass_rate_before"] == pytest.approx(embedded["pass_rate_before"], abs=0.1)
    error = math.hypot(served["pass_rate_after_se"], embedded["pass_rate_after_se"])
    assert abs(served["pass_rate_after"] - embedded["pass_rate_after"]) < 4 * error
    assert min(served["pass_rate_after"], embedded["pass_rate_after"]) > served["pass_rate_before"] + 0.3


@BOTH
def test_two_tensor_ranks_and_one_server(server, tmp_path: Path) -> None:
    """Weights are gathered from both ranks; the losses are those of one rank, whose server draws the same responses."""
    losses = []
    for ranks in (0, 2):
        folder = tmp_path / f"ranks-{ranks}"
        parallel = [f"parallel.tensor={ranks}"] if ranks else []
        code, output = run(*words(server, folder, "gloo"), *parallel, "train.steps=2", ranks=ranks, limit=400.0)
        assert code == 0, output
        losses.append([step["loss"] for step in steps_of(folder)])
    if server.engine == "vllm":  # SGLang draws by its own random numbers
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@BOTH
def test_a_run_is_stopped_in_the_middle_of_a_rollout(server, tmp_path: Path) -> None:
    """What was drawn is kept with its tokens, and goes on in the next run: nothing is drawn twice, nothing is lost."""
    folder = tmp_path / "run"
    slowly = ["rollout.samples=16", "rollout.remote.requests_per_server=2", "rollout.remote.stream_interval=1"]
    process = start(*words(server, folder, "gloo"), *slowly, "train.steps=2")
    wait_for_rollout(folder, process)
    os.killpg(process.pid, signal.SIGTERM)
    code, output = finish(process, limit=120.0)
    assert code == 75 and "stopped while the rollouts of step 2 of 2 were collected; the state is saved" in output, (
        output
    )
    (saved,) = (folder / "checkpoints").glob("step-*/step/groups.pt")
    groups = torch.load(saved, weights_only=True)
    answers = sum(len(group["answers"]) for group in groups)
    begun = sum(len(tokens) > 0 for group in groups for tokens, *_ in group["begun"].values())
    assert len(groups) == 4 and 0 < answers < 64 and 0 < begun <= 2
    code, output = run("train", str(folder / "resolved.yaml"), limit=300.0)
    assert code == 0, output
    assert [step["rollout/groups_kept"] for step in steps_of(folder)] == [4, 4]
    assert [step["rollout/groups_sampled"] for step in steps_of(folder)] == [4, 4]


def wait_for_rollout(folder: Path, process, limit: float = 120.0) -> None:
    """Until the first step is written, and a little longer."""
    deadline = time.monotonic() + limit
    while not ((folder / "metrics.jsonl").is_file() and metrics_of(folder, "train")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(2.0)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(("tail", "ranks"), [("generate", 0), ("stop", 0), ("generate", 2)])
def test_generation_goes_ahead_of_training(server, tmp_path: Path, tail: str, ranks: int) -> None:
    """A step of groups is always under way; no token is older than allowed, and those of the policy's weights are its own."""
    ahead = ["rollout.max_staleness=1", f"rollout.tail={tail}", "objective.correction=tis"]
    parallel = [f"parallel.tensor={ranks}"] if ranks else []
    code, output = run(*words(server, tmp_path, "gloo"), *ahead, *parallel, ranks=ranks, limit=400.0)
    assert code == 0, output
    steps = steps_of(tmp_path)
    assert [step["rollout/groups_under_way"] for step in steps] == [4.0] * 4
    assert [step["rollout/groups_kept"] for step in steps] == [4.0] * 4
    assert max(step["rollout/staleness_max"] for step in steps) == 1.0
    assert 0.0 < sum(step["rollout/staleness"] for step in steps) <= 4.0


@pytest.mark.slow
@BOTH
def test_a_run_without_servers_is_saved_and_goes_on(server, tmp_path: Path) -> None:
    """All servers gone in the middle: one line that names them, exit code 1, and the run resumes with them."""
    from engine_servers import FaultyProxy

    proxy = FaultyProxy(server.server.url)
    proxy.only_generation = False
    folder = tmp_path / "run"
    asked = words(server, folder, "disk")
    asked[asked.index(f"rollout.servers=[{server.server.url}]")] = f"rollout.servers=[{proxy.url}]"
    quick = ["rollout.remote.patience_seconds=3", "rollout.remote.health_timeout_seconds=5"]
    process = start(*asked, *quick, "train.steps=6")
    watcher = threading.Thread(target=refuse_after_a_step, args=(proxy, folder))
    watcher.start()
    code, output = finish(process, limit=400.0)
    watcher.join()
    assert code == 1 and "Traceback" not in output, output
    assert f"rollout.servers: none is ready after 3 s: {proxy.url}" in output and "resume the run" in output
    done = len(metrics_of(folder, "train"))
    assert 1 <= done < 6

    proxy.mode = "pass"
    code, output = run("train", str(folder / "resolved.yaml"), limit=400.0)
    proxy.close()
    assert code == 0, output
    assert f"after step {done} of 6" in output
    assert [step["step"] for step in steps_of(folder)] == [1, 2, 3, 4, 5, 6]


def refuse_after_a_step(proxy, folder: Path) -> None:
    deadline = time.monotonic() + 300.0
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").is_file() and metrics_of(folder, "train"):
            break
        time.sleep(0.05)
    proxy.mode = "refuse"


@pytest.mark.slow
@pytest.mark.parametrize("server", ["vllm tied"], indirect=True, scope="session")
def test_another_model_than_the_trainers_is_found_by_the_probe(server, tmp_path: Path) -> None:
    """A server that answers with other numbers than its weights give: here a temperature of its own making."""
    from engine_servers import FaultyProxy

    proxy = FaultyProxy(server.server.url)
    proxy.mode = "shift"
    asked = words(server, tmp_path / "run", "gloo")
    asked[asked.index(f"rollout.servers=[{server.server.url}]")] = f"rollout.servers=[{proxy.url}]"
    code, output = run(*asked, limit=400.0)
    proxy.close()
    assert code == 1 and "Traceback" not in output, output
    assert f"after the weight update, log-probs of {proxy.url} differ" in output and "rollout.probe_limit" in output
