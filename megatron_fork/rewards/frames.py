"""Messages between pool and worker: a four-byte length, then JSON in UTF-8.

Lone surrogates are legal in a Python string and come out of broken detokenizers, hence `surrogatepass`.
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
    """Take the first message off `buffer`; None while it is incomplete.

    Raises ValueError where the bytes are no message, or one longer than `limit_bytes`.
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
    """The messages that arrive, until the other side closes its end."""
    buffer = bytearray()
    while chunk := channel.recv(CHUNK_BYTES):
        buffer += chunk
        message = pop_frame(buffer)
        if message is not None:
            yield message
