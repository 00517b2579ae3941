"""Texts that try to be more than text on a page, and what a reader of the page finds."""

import math
from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</div></article>",
    "&lt;b&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "\x00\x1b[31m\x7f\x85",
    "\u202eevil\u2066",
    "\ud800",
    "\uffff",
    "\u2028]]>",
    "",
    "\r\n\t ",
]


class Elements(HTMLParser):
    """Collects the tags, the attribute names and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hostile_trace(step: int, tokens: list[str]) -> dict:
    return {
        "step": step,
        "prompt": "".join(HOSTILE),
        "answer": HOSTILE[0],
        "tokens": tokens,
        "entropy": [[1.0, math.nan, math.inf, -0.5][position % 4] for position in range(len(tokens))],
        "selected": [position % 2 == 0 for position in range(len(tokens))],
        "logprob": [[-0.5, math.nan, 1e9, -math.inf][position % 4] for position in range(len(tokens))],
        "reward": math.nan,
        "advantage": math.inf,
        "finish_reason": HOSTILE[1],
    }
