"""How messages write sizes, commands to type, and ways out of a refused write."""

from __future__ import annotations

import errno
import shlex

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes in the unit that leaves at most three digits before the point: `1.36 MiB`, `61.0 GiB`."""
    unit = 0
    while count >= 1000.0 and unit < len(_UNITS) - 1:
        count, unit = count / 1024.0, unit + 1
    digits = 0 if unit == 0 or count >= 100.0 else 1 if count >= 10.0 else 2
    return f"{count:.{digits}f} {_UNITS[unit]}"


def command(*words: object) -> str:
    """A command as one types it in a shell, with blanks and quotes in its words escaped."""
    return f"`{shlex.join(map(str, words))}`"


def way_out(error: OSError, *, elsewhere: str) -> str:
    """What to do when a write fails; `elsewhere` is the setting that names another place."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"free some space, or choose another {elsewhere}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"there is a file where a folder is needed, or a folder where a file is: choose another {elsewhere}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"choose another {elsewhere}, where this user may write"
    return f"choose another {elsewhere}"
