"""What a fork of this process has to tell it, in memory that both have: no third process in between, and no pipe to fill up."""

from __future__ import annotations

import os
import pickle
import queue
from typing import Any


class ReportsOfForks:
    """A queue from forks of this process, one at a time, back to it; made before the fork."""

    def __init__(self) -> None:
        self._memory = os.memfd_create("reports of checkpoint writers")
        self._read = 0

    def put(self, report: Any) -> None:
        data = pickle.dumps(report)
        with open(os.dup(self._memory), "r+b") as end:  # noqa: PTH123
            end.seek(0, os.SEEK_END)
            end.write(len(data).to_bytes(8, "little") + data)

    def get_nowait(self) -> Any:
        header = os.pread(self._memory, 8, self._read)
        if len(header) < 8:
            raise queue.Empty
        size = int.from_bytes(header, "little")
        with open(os.dup(self._memory), "rb") as start:  # noqa: PTH123
            start.seek(self._read + 8)
            report = pickle.loads(start.read(size))
        self._read += 8 + size
        if self._read == os.fstat(self._memory).st_size:
            os.ftruncate(self._memory, 0)
            self._read = 0
        return report
