"""A scrape is valid text format, whatever the metrics are called and worth, and shows the latest of each."""

import contextlib
import math
import re
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import QUICKSTART, TINY, finish, metrics_of, start

from megatron_fork.config import load_config
from megatron_fork.errors import RunFolderError
from megatron_fork.run import check
from megatron_fork.run.prometheus import LatestMetrics, MetricsServer, gauge_name

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf'({NAME})(\{{[a-zA-Z_][a-zA-Z0-9_]*="[^"\\\n]*"\}})? ([-+]?[0-9.]+(?:e[-+]?[0-9]+)?|NaN|[-+]Inf)')


def parsed(text: str) -> dict[str, float]:
    """The samples of the text format, read strictly: each has one type, said before it, and stands together with its kind."""
    assert text.endswith("\n")
    types: dict[str, str] = {}
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert re.fullmatch(NAME, name) and kind in ("gauge", "counter") and name not in types, line
            types[name] = kind
        elif line.startswith("# HELP "):
            assert line.removeprefix("# HELP ").split(" ")[0] not in types, line
        else:
            found = SAMPLE.fullmatch(line)
            assert found and found[1] == list(types)[-1] and found[1] + (found[2] or "") not in samples, line
            samples[found[1] + (found[2] or "")] = float(found[3])
    return samples


def scraped(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        assert path != "/metrics" or answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


@given(
    st.lists(st.tuples(st.sampled_from(["sft", "train"]), st.dictionaries(st.text(), st.floats() | st.integers()))),
)
def test_any_metrics_are_valid_text(written: list[tuple[str, dict[str, float]]]) -> None:
    latest = LatestMetrics()
    expected: dict[str, float] = {"megatron_fork_up": 1}
    for step, (stage, values) in enumerate(written):
        latest.update(stage, step, values)
        expected[f'megatron_fork_steps_total{{stage="{stage}"}}'] = step
        expected |= {gauge_name(stage, name): float(value) for name, value in values.items()}
    found = parsed(latest.text())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value or (math.isnan(found[name]) and math.isnan(value)), name


def test_only_metrics_are_served() -> None:
    server = MetricsServer("127.0.0.1", 0)
    server.latest.update("train", 3, {"entropy/mean": 0.25, "selection/threshold": math.nan})
    found = parsed(scraped(server.port))
    assert found["megatron_fork_train_entropy_mean"] == 0.25 and found['megatron_fork_steps_total{stage="train"}'] == 3
    assert math.isnan(found["megatron_fork_train_selection_threshold"])
    with pytest.raises(urllib.error.HTTPError, match="404"):
        scraped(server.port, "/")
    server.close()
    with pytest.raises(urllib.error.URLError):
        scraped(server.port)


def test_a_port_that_is_taken_is_refused_before_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = load_config(QUICKSTART, [f"run.prometheus_port={port}"])
        with pytest.raises(RunFolderError, match=f"run.prometheus_port={port} cannot be used") as refused:
            check(config, ranks=1)
        assert "Address already in use" in refused.value.message and "free port" in refused.value.hint
    check(load_config(QUICKSTART, [f"run.prometheus_port={port}"]), ranks=1)
    for host in ("nowhere.invalid", "203.0.113.1", "a" * 70):
        with pytest.raises(RunFolderError, match=r"run\.prometheus_host"):
            check(load_config(QUICKSTART, [f"run.prometheus_port={port}", f"run.prometheus_host={host}"]), ranks=1)


def test_a_run_is_scraped_while_it_runs(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start("train", str(QUICKSTART), *TINY, f"run.folder={tmp_path}", f"run.prometheus_port={port}")
    seen: dict[str, float] = {}
    while process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            seen |= parsed(scraped(port))
        time.sleep(0.02)  # a scrape after another would take the run's core
    code, output = finish(process)
    assert code == 0, output
    assert seen["megatron_fork_up"] == 1 and seen['megatron_fork_steps_total{stage="train"}'] >= 3
    last = metrics_of(tmp_path, "train")[-1]
    wanted = ("entropy/mean", "selection/threshold", "mismatch/max", "tokens_per_second", "memory/resident")
    assert all(name in last and gauge_name("train", name) in seen for name in wanted)
    assert "exception" not in output.lower()
