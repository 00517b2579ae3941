"""Masking of secrets: passwords within addresses, and keys that came from the environment.

Messages, logs and the files of a run are shared with others, so `***` replaces each secret in them.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
from typing import Any
from urllib.parse import quote, unquote

KEY_VARIABLE = "MEGATRON_FORK_API_KEY"
"""The key that every request to a rollout server carries."""
MASK = "***"

# The login between the scheme and the host of an address: all up to the last `@` before the path.
_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*@")
# The login of an invalid address, with such characters in its password: what follows the first colon is not a port.
_BROKEN_LOGIN = re.compile(r"(?<=://)[^\s/:@\[]*:(?!\d{1,5}\b)(?:(?!://)\S)*@")
_PARAMETER = re.compile(
    r"(?i)([?&][\w.-]*(?:key|token|secret|password|passwd|signature|credential)[\w.-]*=)[^&\s#'\"]+"
)
_SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|credential|auth|login")
_SHORTEST = 4
# A shorter password that is a word, such as `vllm`, would be masked where the word is not a password.
_SHORTEST_PASSWORD = 8

_hidden: set[str] = set()


def hide(value: str, *, named: str) -> None:
    """Mask a value from now on if its name says that it is a secret; very short values are not masked."""
    if _SECRET_NAME.search(named):
        _hidden.update(_forms(value))


def hide_logins(text: str) -> None:
    """Mask from now on the logins of addresses in `text`, also in the form of an HTTP header."""
    for found in _LOGIN.findall(text):
        user, colon, password = found[:-1].partition(":")
        if not colon or found[:-1] == MASK:
            continue
        _hidden.update(_forms(found[:-1]))
        for secret in (password, unquote(password)):
            if len(secret) >= _SHORTEST_PASSWORD:
                _hidden.update(_forms(secret))
        _hidden.add(base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())


def masked(text: str) -> str:
    """`text` without passwords and keys."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _PARAMETER.sub(rf"\1{MASK}", _LOGIN.sub(f"{MASK}@", _BROKEN_LOGIN.sub(f"{MASK}@", text)))


def shown(value: Any) -> str:
    """A value for an error message: on one line, short, without passwords and keys."""
    text = masked(repr(value) if not isinstance(value, str | int | float | None) else str(value))
    return text if len(text) <= 80 and text.isprintable() else ascii(text[:80]) + "..."


def _secrets() -> set[str]:
    key = os.environ.get(KEY_VARIABLE, "")
    return _hidden | _forms(key)


@functools.cache
def _forms(secret: str) -> frozenset[str]:
    """The secret as it is, and as Python, JSON and addresses write it."""
    forms = {secret, secret.strip(), repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")}
    return frozenset(form for form in forms if len(form) >= _SHORTEST)
