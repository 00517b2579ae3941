"""Servers without a model that take weights, each in a process of its own, and a trainer's engine for some of them."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import torch

from support.engine_servers import free_port
from support.receiving_front import Front, Misdeed, digest

__all__ = ["Misdeed", "ReceivingServer", "digest", "fleet_of"]


def _serve(engine: str, host: str, port: int, workers: int, digests: bool, line: Any) -> None:
    torch.set_num_threads(1)
    line.recv()
    front = Front(engine, workers, digests)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one piece, or the client waits 40 ms for the second

        def do_GET(self) -> None:
            self._tell(front.answer, {})

        def do_POST(self) -> None:
            self._tell(front.answer, json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}"))

        def _tell(self, act, body) -> None:
            try:
                status, answer = 200, act(self.path.partition("?")[0], body)
            except (RuntimeError, ValueError) as error:
                status, answer = 400, {"error": {"message": str(error).splitlines()[0]}}
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer((host, port), Handler)
    http.handle_error = lambda *_: None  # a client that no longer waits
    line.send("up")
    http.serve_forever()


class ReceivingServer:
    """Its process is there from the start, and serves from `start` on; `start` after it has ended is a new process."""

    def __init__(
        self,
        engine: str,
        *,
        workers: int = 1,
        host: str = "127.0.0.1",
        lives: int = 1,
        digests: bool = True,
        method: str = "forkserver",
    ) -> None:
        self.engine, self.host, self.port = engine, host, free_port()
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._lives = []
        for _ in range(lives):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context(method).Process(
                target=_serve, args=(engine, host, self.port, workers, digests, theirs), daemon=True
            )
            process.start()
            self._lives.append((process, ours))

    @property
    def process(self):
        return self._lives[0][0]

    def start(self) -> "ReceivingServer":
        self._lives[0][1].send(None)
        assert self._lives[0][1].recv() == "up"
        return self

    def next_life(self) -> None:
        """The present process ends; `start` starts the next."""
        self.process.kill()
        self.process.join()
        del self._lives[0]

    def behave(self, misdeed: Misdeed | None) -> None:
        httpx.post(f"{self.url}/behave", json={"misdeed": vars(misdeed) if misdeed else None}, trust_env=False)

    @property
    def received(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/received", trust_env=False, timeout=10.0).json()

    def close(self) -> None:
        for process, _ in self._lives:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()


@contextmanager
def fleet_of(
    folder: Path,
    engine: str,
    *,
    workers: Sequence[int] = (1, 1, 1, 1),
    hosts: Sequence[str] = (),
    lives: int = 1,
    waiting: int = 0,
    sync: str = "gloo",
    digests: bool = True,
    **settings: Any,
) -> Iterator[tuple[Any, list[ReceivingServer]]]:
    """A trainer's engine, whose lines are in its `lines`, and its servers, of which the last `waiting` are not started."""
    from transformers import Qwen3Config

    from megatron_fork.rollout import RemoteConfig, RemoteEngine, RolloutConfig

    servers = [
        ReceivingServer(engine, workers=count, host=host, lives=lives, digests=digests)
        for count, host in zip(workers, hosts or ["127.0.0.1"] * len(workers), strict=True)
    ]
    made = None
    try:
        for server in servers[: len(servers) - waiting]:
            server.start()
        quick: dict[str, Any] = {
            "control_seconds": 40.0,
            "health_seconds": 0.2,
            "health_timeout_seconds": 2.0,
            "patience_seconds": 60.0,
            "attempts": 3,
        }
        config = RolloutConfig(
            engine=engine,
            servers=[server.url for server in servers],
            sync=sync,
            remote=RemoteConfig(**(quick | settings)),
        )
        lines: list[str] = []
        made = RemoteEngine(
            config, Qwen3Config(vocab_size=135), stop_tokens=(1,), folder=folder, world=None, say=lines.append
        )
        made.lines = lines
        yield made, servers
    finally:
        for server in servers:
            server.close()
        if made is not None:
            made.close()
