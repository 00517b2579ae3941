"""One process speaks to many servers: to all at a time, with as many connections as it may open, and exactly what they said."""

import asyncio
import json
import resource
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.decoding_servers import Decoding, decoding_servers
from support.fleets import WEIGHTS, engine_of, requests
from support.stand_in_engine import StandIn

from megatron_fork.rollout.servers.wire import parsed


def test_all_servers_are_probed_at_a_time(tmp_path: Path, monkeypatch) -> None:
    """Each waits until all have been asked."""
    asked, everyone = set(), 4

    with ExitStack() as stack:
        servers = [stack.enter_context(closing(StandIn("vllm"))) for _ in range(everyone)]

        def waits(place: int):
            async def fault(exchange) -> None:
                asked.add(place)
                while len(asked) < everyone:
                    await asyncio.sleep(0.01)
                await exchange.say(exchange.right)

            return fault

        with engine_of(servers, tmp_path, monkeypatch, idle_seconds=20.0) as engine:
            engine.update_weights(WEIGHTS, 0)
            for place, server in enumerate(servers):
                server.fault = waits(place)
            answers = engine.replicas(requests(2))
    assert len(answers) == everyone and {len(each) for each in answers.values()} == {2}


WITH_LIMITS = """
import resource, sys
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from megatron_fork.rollout.servers.wire import connections_allowed
print(connections_allowed(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def allowed(soft: int, hard: int, wanted: int) -> tuple[int, int]:
    """How many connections a process with these limits may open, and the soft limit that it then has."""
    command = [sys.executable, "-c", WITH_LIMITS, *map(str, (soft, hard, wanted))]
    connections, limit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(connections), int(limit)


def test_the_soft_limit_of_open_files_is_raised_as_far_as_needed() -> None:
    assert allowed(256, 8192, 4096) == (4096, 4096 + 2048)
    assert allowed(8000, 8192, 4096) == (4096, 8000)
    assert allowed(256, 4000, 4096) == (4000 - 2000, 4000)
    assert allowed(100, 100, 4096) == (50, 100)


LIMITED = """
import resource, sys
from pathlib import Path
from contextlib import closing
from transformers import Qwen3Config
from megatron_fork.rollout import RemoteEngine, RolloutConfig
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 1000))
config = RolloutConfig(engine="vllm", servers=[f"http://127.0.0.1:{port}" for port in (1, 2, 3, 4)])
with closing(RemoteEngine(config, Qwen3Config(), stop_tokens=(1,), folder=Path("none"), world=None, say=print)) as engine:
    print({server.config.requests_per_server for server in engine.fleet.servers}, engine.fleet.config.requests_per_server)
"""


def test_a_hard_limit_leaves_fewer_requests_at_a_time_and_says_so() -> None:
    output = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True).stdout
    assert "leaves 125 of rollout.remote.requests_per_server=256 requests for each of 4 servers" in output
    assert output.splitlines()[-1] == "{125} 125"


def test_many_requests_at_once_fit_a_low_soft_limit(tmp_path: Path, monkeypatch) -> None:
    """As many streams at a time as the process could not have files open at first."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    decoding = Decoding(
        servers=2, interval=8, events_a_second=400.0, shortest=64, median=64.0, sigma=0.0, vocabulary=135
    )
    with decoding_servers(decoding) as urls:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, before[1]))
            servers = [type("At", (), {"engine": "vllm", "url": url}) for url in urls]
            with engine_of(servers, tmp_path, monkeypatch, idle_seconds=30.0, stream_interval=8) as engine:
                engine.update_weights(WEIGHTS, 0)
                drawn = list(engine.generate(requests(150, max_tokens=200)))
                assert engine.fleet.counts["faults"] == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sorted(each.number for each in drawn) == list(range(150))
    assert {len(each.tokens) for each in drawn} == {64}


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-60.0, 0.0, width=32) | st.integers()
answers = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner),
    max_leaves=20,
)


@given(answers)
def test_an_answer_is_read_to_the_last_bit(answer) -> None:
    """Every log-prob is the float that the server wrote, and nothing changes its type."""
    text = json.dumps(answer)
    assert repr(parsed(text.encode(), "/path")) == repr(json.loads(text))
