"""What nobody may read over a user's shoulder: passwords within addresses, and keys that came from the environment.

Messages, logs and the files of a run are shown around: in them `***` stands for each.
"""

from __future__ import annotations

import os
import re

KEY_VARIABLE = "MEGATRON_FORK_API_KEY"
"""The key that every request to a rollout server carries."""
MASK = "***"

# Between the scheme and the host of an address: all up to the last `@` before the path.
_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*@")
_PARAMETER = re.compile(
    r"(?i)([?&][\w.-]*(?:key|token|secret|password|passwd|signature|credential)[\w.-]*=)[^&\s#'\"]+"
)
_SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|credential|auth|login")
_SHORTEST = 4

_hidden: set[str] = set()


def hide(value: str, *, named: str) -> None:
    """Mask a value from now on, if what it is `named` says that it is a secret; a short one would mask half of a message."""
    if _SECRET_NAME.search(named) and len(value) >= _SHORTEST:
        _hidden.add(value)


def masked(text: str) -> str:
    """`text` without passwords and keys."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _PARAMETER.sub(rf"\1{MASK}", _LOGIN.sub(f"{MASK}@", text))


def _secrets() -> set[str]:
    key = os.environ.get(KEY_VARIABLE, "")
    return _hidden | ({key} if len(key) >= _SHORTEST else set())
