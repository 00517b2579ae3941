"""Starting real servers of both engines for tests, and a proxy in front of one that does what failing servers do."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

PROJECT = Path(__file__).parents[2]
ENGINES = ("vllm", "sglang")


def environment_of(engine: str) -> Path:
    return Path(os.environ.get("MEGATRON_FORK_ENGINES", PROJECT)) / f".venv-{engine}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RunningServer:
    """One engine's server for one model folder, in a process group of its own."""

    def __init__(
        self, engine: str, model: Path, log: Path, *, key: str | None = None, options: Sequence[str] = ()
    ) -> None:
        if not (environment_of(engine) / "bin" / "python").exists():
            pytest.skip(f"no environment of {engine}: make it with scripts/engine_environment.sh {engine}")
        self.engine, self.model, self.log, self.key = engine, model, log, key
        self.options = list(options)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self, limit: float = 400.0) -> "RunningServer":
        variables = {name: value for name, value in os.environ.items() if name != "MEGATRON_FORK_API_KEY"}
        if self.key:
            variables["MEGATRON_FORK_API_KEY"] = self.key
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    *("bash", str(PROJECT / "scripts" / "serve_engine.sh"), self.engine),
                    *(str(self.model), str(self.port), *self.options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        self.stop()
        raise AssertionError(f"{self.engine} did not start:\n{self.log.read_text()[-4000:]}")

    def signal(self, number: int) -> None:
        """To every process of the server."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def serving(
    engine: str, model: Path, folder: Path, *, key: str | None = None, options: Sequence[str] = ()
) -> Iterator[RunningServer]:
    """`options`: the engine's own."""
    server = RunningServer(engine, model, folder / f"{engine}-{model.name}.log", key=key, options=options)
    try:
        yield server.start()
    finally:
        server.stop()


class FaultyProxy:
    """Passes connections on to a real server until it is told to misbehave.

    `mode`: pass; refuse (no connection); hang (nothing comes back any more); error (500); busy (429); garbage (200 with
    nonsense); truncate (each stream ends after its first chunk); nonsense (token ids that there are none of); shift (other
    log-probs, of vLLM).
    """

    # Two proxies of one server would ask it for two weight updates at once, which no pair of real servers does.
    _one_control_call = threading.Lock()

    def __init__(self, target: str) -> None:
        self.target = int(target.rsplit(":", 1)[1])
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.mode = "pass"
        self.only_generation = True
        self.misbehaved = 0
        self._connections: set[asyncio.Task | None] = set()  # asyncio itself keeps no reference to them
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._started.set()
        self._loop.run_forever()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length")
                    ),
                    0,
                )
                body = await reader.readexactly(length)
                if not await self._answer(head, body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections.discard(asyncio.current_task())
            writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        is_generation = b"/generate" in head.split(b"\r\n", 1)[0]
        mode = self.mode if is_generation or not self.only_generation else "pass"
        if mode != "pass":
            self.misbehaved += 1
        if mode == "refuse":
            return False
        if mode == "hang":
            await asyncio.sleep(3600.0)
        status = {"error": b"500 Internal Server Error", "busy": b"429 Too Many Requests", "garbage": b"200 OK"}.get(
            mode
        )
        if status is not None:
            text = b"data: <html>\n\n" if mode == "garbage" else b"no"
            writer.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-type: text/event-stream\r\ncontent-length: "
                + str(len(text)).encode() + b"\r\n\r\n" + text
            )  # fmt: skip
            await writer.drain()
            return True
        if is_generation or head.startswith(b"GET"):
            await self._pass_on(head, body, writer, mode)
            return False
        await asyncio.to_thread(self._one_control_call.acquire)
        try:
            await self._pass_on(head, body, writer, mode)
        finally:
            self._one_control_call.release()
        return False

    async def _pass_on(self, head: bytes, body: bytes, writer: asyncio.StreamWriter, mode: str) -> None:
        """One request on a connection of its own, which the server is asked to close."""
        reader, upstream = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
            upstream.write(b"\r\n".join([*lines, b"connection: close", b"", b""]) + body)
            await upstream.drain()
            chunks = 0
            while chunk := await reader.read(1 << 16):
                # A server that goes silent does so in the middle of things as well.
                while self.mode == "hang" and (not self.only_generation or b"/generate" in lines[0]):
                    await asyncio.sleep(0.1)
                if mode == "nonsense":
                    chunk = chunk.replace(b'"token_ids":[', b'"token_ids":[99999999,').replace(
                        b'"output_ids":[', b'"output_ids":[99999999,'
                    )
                if mode == "shift":
                    # In place: a longer chunk would no longer be what its header says.
                    chunk = re.sub(rb'("logprob":-)[0-8]', rb"\g<1>9", chunk)
                writer.write(chunk)
                await writer.drain()
                chunks += 1
                if mode == "truncate" and chunks > 1:
                    break
        finally:
            upstream.close()
