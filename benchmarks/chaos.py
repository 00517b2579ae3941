"""Training through two vLLM or SGLang servers that are killed, hang and answer with errors, beside the same run in peace.

    python benchmarks/chaos.py --engine vllm --out benchmarks/results/chaos_vllm.json

Both servers stand behind a proxy of tests/engine_servers.py, which makes error replies; kills and stops are real signals to the
real servers, and a killed one is started again. The runs are the quickstart task from one warm start. Every step asserts by
itself that the log-probs of all responses are the trainer's; here the responses are counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT / "tests"))

from engine_servers import FaultyProxy, RunningServer  # noqa: E402

REPLIES = ("error", "busy", "garbage", "truncate", "nonsense", "refuse")
# How long an error reply lasts, and a stop.
SECONDS = 2.0


def train(folder: Path, *words: str) -> tuple[subprocess.Popen[str], list[str]]:
    command = [sys.executable, "-m", "megatron_fork", "train", str(PROJECT / "examples" / "quickstart.yaml")]
    process = subprocess.Popen(
        [*command, f"run.folder={folder}", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT,
    )
    return process, command


def steps_of(folder: Path) -> list[dict[str, float]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [record for record in map(json.loads, lines) if record["stage"] == "train"]


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
        warm = Path(scratch, "warm")
        process, _ = train(warm, "train.steps=0", "evaluation.samples=1")
        assert process.wait() == 0
        model = warm / "warm_start"
        # Without detokenisation by the servers, the folder's tokenizer is not read by them.
        servers = [RunningServer(arguments.engine, model, Path(scratch, f"server-{place}.log")) for place in range(2)]
        for server in servers:
            server.start()
        proxies = [FaultyProxy(server.url) for server in servers]
        words = [
            *("sft.steps=0", "model.hf_config=null", f"model.path={model}", f"train.steps={arguments.steps}"),
            *(f"rollout.engine={arguments.engine}", f"rollout.sync={arguments.sync}", "evaluation.every=0"),
            f"rollout.servers=[{','.join(proxy.url for proxy in proxies)}]",
            *("rollout.remote.idle_seconds=10", "rollout.remote.control_seconds=10", "rollout.remote.health_seconds=1"),
            *(
                "rollout.remote.health_timeout_seconds=3",
                "rollout.dynamic_sampling=false",
                "rollout.remote.attempts=20",
            ),
            "rollout.remote.stream_interval=4",
        ]
        try:
            for in_peace in (False, True):
                folder = Path(scratch, "peace" if in_peace else "chaos")
                chaos = Chaos(servers, proxies, 0 if in_peace else arguments.faults, arguments.every, arguments.seed)
                started = time.monotonic()
                process, _ = train(folder, *words)
                while process.poll() is None and not steps_of(folder):
                    time.sleep(0.2)
                chaos.start()
                output, _ = process.communicate()
                chaos.ended.set()
                chaos.join()
                for thread in chaos.away.values():
                    thread.join()
                assert process.returncode == 0, output
                rows.append(row_of(folder, chaos, time.monotonic() - started, in_peace=in_peace))
                print(json.dumps(rows[-1]), flush=True)
        finally:
            for server in servers:
                server.stop()
    if arguments.out:
        command = " ".join(["python", "benchmarks/chaos.py", *sys.argv[1:]])
        record = {"command": command, "processor": platform.processor() or platform.machine(), "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def row_of(folder: Path, chaos: Chaos, seconds: float, *, in_peace: bool) -> dict[str, object]:
    steps = steps_of(folder)
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "run": "peace" if in_peace else "chaos",
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
