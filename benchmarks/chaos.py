"""Training through two vLLM or SGLang servers that are killed, hang and answer with errors, beside the same run in peace.

    python benchmarks/chaos.py --engine vllm --out benchmarks/results/chaos_vllm.json

Both servers stand behind a proxy (tests/support/engine_servers.py) that makes error replies; kills and stops are real signals
to the real servers, and a killed one is started again. The runs are the quickstart task from one warm start. Every step asserts
by itself that the log-probs of all responses are the trainer's; here the responses are counted.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

from served import FaultyProxy, RunningServer, serving, start, steps_of, summary_of, warm_start, write

REPLIES = ("error", "busy", "garbage", "truncate", "nonsense", "refuse")
PATIENCE = (
    *("rollout.remote.idle_seconds=10", "rollout.remote.control_seconds=10", "rollout.remote.attempts=20"),
    *("rollout.remote.health_seconds=1", "rollout.remote.health_timeout_seconds=3", "rollout.remote.stream_interval=4"),
)
# How long an error reply lasts, and a stop.
SECONDS = 2.0


class Chaos(threading.Thread):
    """Faults at random times and servers, until `wanted` have happened or the run ends."""

    def __init__(
        self, servers: list[RunningServer], proxies: list[FaultyProxy], wanted: int, every: float, seed: int
    ) -> None:
        super().__init__(daemon=True)
        self.servers, self.proxies, self.wanted, self.every = servers, proxies, wanted, every
        self.random = random.Random(seed)
        self.done: list[dict[str, object]] = []
        self.away: dict[int, threading.Thread] = {}
        self.ended = threading.Event()

    def is_away(self, place: int) -> bool:
        return place in self.away and self.away[place].is_alive()

    def run(self) -> None:
        started = time.monotonic()
        while len(self.done) < self.wanted and not self.ended.wait(self.random.uniform(0.5, 1.5) * self.every):
            present = [place for place in range(len(self.servers)) if not self.is_away(place)]
            if not present:
                continue
            place = self.random.choice(present)
            kind = self.random.choices(["kill", "stop", "reply"], [2, 3, 5])[0]
            reply = self.random.choice(REPLIES)
            self.done.append(
                {
                    "second": round(time.monotonic() - started, 1),
                    "server": place,
                    "fault": reply if kind == "reply" else kind,
                }
            )
            getattr(self, kind)(place, reply)

    def kill(self, place: int, _: str) -> None:
        """The server is away until it has started again; meanwhile the other one has its faults."""
        self.servers[place].stop()
        self.away[place] = threading.Thread(target=self.servers[place].start)
        self.away[place].start()

    def stop(self, place: int, _: str) -> None:
        self.servers[place].signal(signal.SIGSTOP)
        time.sleep(SECONDS * 3)
        self.servers[place].signal(signal.SIGCONT)

    def reply(self, place: int, mode: str) -> None:
        self.proxies[place].mode = mode
        time.sleep(SECONDS)
        self.proxies[place].mode = "pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["vllm", "sglang"], default="vllm")
    parser.add_argument("--sync", choices=["disk", "gloo"], default="gloo")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="chaos") as scratch:
        words = warm_start(Path(scratch, "warm"))
        with serving(arguments.engine, Path(scratch, "warm", "warm_start"), Path(scratch), count=2) as servers:
            proxies = [FaultyProxy(server.url) for server in servers]
            words += [
                *(f"train.steps={arguments.steps}", "evaluation.every=0", "rollout.dynamic_sampling=false"),
                *(f"rollout.engine={arguments.engine}", f"rollout.sync={arguments.sync}"),
                f"rollout.servers=[{','.join(proxy.url for proxy in proxies)}]",
                *PATIENCE,
            ]
            for faults in (arguments.faults, 0):
                chaos = Chaos(servers, proxies, faults, arguments.every, arguments.seed)
                rows.append(one_run(Path(scratch, f"{faults}-faults"), words, chaos))
                print(json.dumps(rows[-1]), flush=True)
    write(arguments.out, rows)


def one_run(folder: Path, words: list[str], chaos: Chaos) -> dict[str, object]:
    """Faults begin after the first step; the run must end by itself and in order."""
    started = time.monotonic()
    process = start(folder, *words)
    while process.poll() is None and not steps_of(folder):
        time.sleep(0.2)
    chaos.start()
    output, _ = process.communicate()
    seconds = time.monotonic() - started
    chaos.ended.set()
    chaos.join()
    for thread in chaos.away.values():
        thread.join()
    assert process.returncode == 0, output
    return row_of(folder, chaos, seconds)


def row_of(folder: Path, chaos: Chaos, seconds: float) -> dict[str, object]:
    steps = steps_of(folder)
    summary = summary_of(folder)
    return {
        "run": "chaos" if chaos.wanted else "peace",
        "steps": len(steps),
        "groups_sampled": sorted({step["rollout/groups_sampled"] for step in steps}),
        "groups_kept": sorted({step["rollout/groups_kept"] for step in steps}),
        "largest_mismatch": max(step["mismatch/max"] for step in steps),
        "pass_rate_before": summary["pass_rate_before"],
        "pass_rate_after": summary["pass_rate_after"],
        "pass_rate_after_se": summary["pass_rate_after_se"],
        "seconds": round(seconds, 1),
        "faults": chaos.done,
    }


if __name__ == "__main__":
    main()
