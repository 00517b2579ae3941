"""A hook of mkdocs: links from a page to files of the project that are no pages of the book are shown as text.

The same pages are read in a checkout, where such a link opens the file; in the built book there is nothing to open.
"""

from __future__ import annotations

import re
from typing import Any

_OUT_OF_BOOK = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./(?!#)[^)]*|recipe\.schema\.json)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page as mkdocs is to read it; called by mkdocs."""
    return _OUT_OF_BOOK.sub(r"\1", markdown)
