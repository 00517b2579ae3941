"""Which files a program may open (Landlock, Linux 5.13 and newer): only those of Python's library.

A process sets the rules for itself without any privilege and can never remove them. They also keep it from the memory and
the environment of every process outside, from TCP (Linux 6.7), and from signals to processes outside (Linux 6.12).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import sysconfig
from pathlib import Path

# The numbers are the same on all architectures.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION, PATH_BENEATH = 1, 1
EXECUTE, READ_FILE, READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
# What each version of the interface can forbid: rights on files, on TCP, and on processes outside.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
TCP_SINCE, SCOPES_SINCE = 4, 6

# Python loads its files from these folders. No file of a run is in them.
SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom")


def version() -> int:
    """Version of the kernel's interface; 0 if it has none or refuses it."""
    return max(0, _call(CREATE_RULESET, None, 0, ASK_VERSION)) if sys.platform == "linux" else 0


def rules_for(interpreter: Path) -> int:
    """A descriptor of the rules that let `interpreter` run a program; raises OSError without Landlock."""
    known = version()
    rights = (1 << FILE_RIGHTS.get(known, FILE_RIGHTS[5])) - 1
    attributes = [rights]
    if known >= TCP_SINCE:
        attributes.append(0b11)  # to bind, to connect
    if known >= SCOPES_SINCE:
        attributes.append(0b11)  # abstract sockets, signals
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    rules = _call(CREATE_RULESET, packed, len(packed), 0)
    if rules < 0:
        raise OSError("this kernel has no Landlock")
    paths = sysconfig.get_paths()
    for folder in {*SYSTEM_FOLDERS, paths["stdlib"], paths["platstdlib"], str(Path(sys.base_prefix) / "lib")}:
        _allow(rules, folder, READ_FILE | READ_FOLDER)
    for file in (*SYSTEM_FILES, str(Path(sys.prefix) / "pyvenv.cfg")):
        _allow(rules, file, READ_FILE)
    for file in {str(interpreter), *loaded_files()}:
        _allow(rules, file, READ_FILE | EXECUTE)
    return rules


def loaded_files() -> set[str]:
    """The interpreter, its loader and its libraries, wherever they are: the executable files that this process has mapped."""
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return {fields[5] for fields in lines if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/")}


def _allow(rules: int, path: str, rights: int) -> None:
    """Allow access to `path`, if it exists."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    _call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    os.close(place)


def restrict(rules: int) -> None:
    """Put this thread under the rules for good. It must have given up new privileges. Raises OSError."""
    if _call(RESTRICT_SELF, rules, 0) != 0:
        raise OSError("the kernel refused Landlock's rules")


def _call(number: int, *given: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *given))
