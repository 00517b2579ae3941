"""The latest metrics of a run in Prometheus' text format, for `run.prometheus_port`."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from megatron_fork.errors import RunFolderError

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "megatron_fork"
# Seconds that the end of a run may wait for the server.
_CLOSES_WITHIN = 0.1


class LatestMetrics:
    """The latest value of every metric; threads may ask for the text while another one updates it."""

    def __init__(self) -> None:
        self._gauges: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()

    def update(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Replace the values of a stage's metrics that are in `values`, and its count of steps."""
        with self._lock:
            self._steps[stage] = step
            self._gauges.update({gauge_name(stage, name): value for name, value in values.items()})

    def text(self) -> str:
        """All metrics in the text format."""
        with self._lock:
            gauges, steps = dict(self._gauges), dict(self._steps)
        lines = [f"# HELP {_PREFIX}_up 1 while the run goes on.", f"# TYPE {_PREFIX}_up gauge", f"{_PREFIX}_up 1"]
        name = f"{_PREFIX}_steps_total"
        lines += [f"# HELP {name} Steps that are done, by stage.", f"# TYPE {name} counter"]
        lines += [f'{name}{{stage="{stage}"}} {count}' for stage, count in sorted(steps.items())]
        for name, value in sorted(gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {_number(value)}"]
        return "\n".join(lines) + "\n"


class MetricsServer:
    """Answers `GET /metrics` in threads of its own, until `close`; binds its port when it is made."""

    def __init__(self, host: str, port: int) -> None:
        self.latest = LatestMetrics()
        text = self.latest.text

        class Handler(BaseHTTPRequestHandler):
            timeout = 10.0  # a client that says nothing keeps a thread no longer

            def do_GET(self) -> None:
                found = self.path.split("?")[0] == "/metrics"
                body = text().encode() if found else b"see /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", _CONTENT_TYPE if found else "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *words: object) -> None:
                """Scrapes are no news."""

        self._server = _bound(host, port, Handler)
        self.port = int(self._server.server_address[1])
        serve = partial(self._server.serve_forever, poll_interval=_CLOSES_WITHIN)
        threading.Thread(target=serve, name="metrics server", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def gauge_name(stage: str, name: str) -> str:
    """`megatron_fork_train_entropy_mean` of `entropy/mean`: letters, digits and underscores."""
    return f"{_PREFIX}_{stage}_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}"


def check_port(host: str, port: int) -> None:
    """Raise `RunFolderError` if nothing can listen at the address."""
    _bound(host, port, BaseHTTPRequestHandler).server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A second run would otherwise share the address, and be scraped in turn with the first.
    allow_reuse_port = False


def _bound(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    try:
        return _Server((host, port), handler)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFolderError(
            f"run.prometheus_port={port} cannot be used on run.prometheus_host={host}: {reason or error}",
            hint="choose a free port from 1024 to 65535 and an address of this machine; 0 switches it off",
        ) from error


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
