"""What nobody may read over a user's shoulder: passwords within addresses, and keys that came from the environment.

Messages, logs and the files of a run are shown around: in them `***` stands for each.
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

# Between the scheme and the host of an address: all up to the last `@` before the path.
_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*@")
# The same of an address that is none, having such characters in its password: what follows the first colon is no port.
_BROKEN_LOGIN = re.compile(r"(?<=://)[^\s/:@\[]*:(?!\d{1,5}\b)(?:(?!://)\S)*@")
_PARAMETER = re.compile(
    r"(?i)([?&][\w.-]*(?:key|token|secret|password|passwd|signature|credential)[\w.-]*=)[^&\s#'\"]+"
)
_SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|credential|auth|login")
_SHORTEST = 4
# A password alone that is a word, such as `vllm`, would be masked where it is none.
_SHORTEST_PASSWORD = 8

_hidden: set[str] = set()


def hide(value: str, *, named: str) -> None:
    """Mask a value from now on, if what it is `named` says that it is a secret; a short one would mask half of a message."""
    if _SECRET_NAME.search(named):
        _hidden.update(_forms(value))


def hide_logins(text: str) -> None:
    """Mask from now on what is in the logins of addresses in `text`, also as a header of HTTP has it."""
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
    """A value in an error's one line, without passwords and keys."""
    text = masked(repr(value) if not isinstance(value, str | int | float | None) else str(value))
    return text if len(text) <= 80 and text.isprintable() else ascii(text[:80]) + "..."


def _secrets() -> set[str]:
    key = os.environ.get(KEY_VARIABLE, "")
    return _hidden | _forms(key)


@functools.cache
def _forms(secret: str) -> frozenset[str]:
    """As it is, and as Python, JSON and addresses write it."""
    forms = {secret, secret.strip(), repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")}
    return frozenset(form for form in forms if len(form) >= _SHORTEST)
