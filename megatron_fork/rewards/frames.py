"""Messages between pool and worker: a four-byte length, then JSON in UTF-8.

Broken detokenizers produce lone surrogates, which are legal in a Python string: hence `surrogatepass`.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

LENGTH = struct.Struct("!I")
CHUNK_BYTES = 1 << 16


def encode(message: object) -> bytes:
    body = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return LENGTH.pack(len(body)) + body


def pop_frame(buffer: bytearray, *, limit_bytes: int | None = None) -> Any | None:
    """Remove the first message from `buffer` and return it; None while it is incomplete.

    Raises ValueError if the bytes are not a message, or if it is longer than `limit_bytes`.
    """
    if len(buffer) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(buffer)
    if limit_bytes is not None and length > limit_bytes:
        raise ValueError(f"a message of {length} bytes")
    end = LENGTH.size + length
    if len(buffer) < end:
        return None
    message = json.loads(bytes(buffer[LENGTH.size : end]).decode("utf-8", "surrogatepass"))
    del buffer[:end]
    return message


def received(channel: socket.socket) -> Iterator[Any]:
    """The messages that arrive until the other side closes its end."""
    buffer = bytearray()
    while chunk := channel.recv(CHUNK_BYTES):
        buffer += chunk
        message = pop_frame(buffer)
        if message is not None:
            yield message
