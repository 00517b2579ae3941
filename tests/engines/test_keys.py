"""A server with a key answers who has it and nobody else, and no process of it shows the key in `ps`."""

from pathlib import Path

import httpx
import pytest
from support.engine_models import new_model, requests, weights_of
from support.engine_servers import ENGINES, serving

from megatron_fork.errors import KEY_VARIABLE

KEY = "key-77c1e0a9"
# Of those that the key guards; vLLM's routes for training are none of them.
GUARDED = {"vllm": "/v1/models", "sglang": "/get_model_info"}


def command_lines(group: int) -> list[bytes]:
    """Of every process of a process group."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                found.append((process / "cmdline").read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_with_a_key(engine: str, remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_model(tied=True, seed=100).save_pretrained(tmp_path / "model")
    with serving(engine, tmp_path / "model", tmp_path, key=KEY) as server:
        lines = command_lines(server.process.pid)
        assert any(b"--port" in line for line in lines)
        assert not [line for line in lines if KEY.encode() in line]
        assert httpx.get(server.url + GUARDED[engine], trust_env=False).status_code == 401
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        with_key = remote(engine, [server.url])
        with_key.update_weights(weights_of(new_model(tied=True, seed=1)), 1)
        assert len(list(with_key.generate(requests(4)))) == 4
        assert KEY not in server.log.read_text(errors="replace")
