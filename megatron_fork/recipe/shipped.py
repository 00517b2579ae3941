"""The recipes that come with the package, by their names: `quickstart`, `qwen3-8b/top20`.

In a checkout they are the files of `examples/`; an installed package has the same files in a folder of its own.
"""

from __future__ import annotations

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "examples", _PACKAGE.parent / "examples")


def recipe_file(named: Path) -> Path:
    """The file that is meant by `named`: the one at that path, or else a recipe that comes with the package.

    The latter is named as in `shipped_recipes`, or as in a checkout: `quickstart`, `examples/quickstart.yaml`. Not as
    `quickstart.yaml`: whoever names a file means that file. A name that is neither is returned as it is.
    """
    return named if named.is_file() else shipped_recipes().get(_name(named), named)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: a path below `examples/` without its suffix."""
    folder = next((place for place in _PLACES if place.is_dir() and (place / "quickstart.yaml").is_file()), None)
    if folder is None:
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def alike(named: Path) -> list[str]:
    """Up to three names of recipes that come with the package and are spelled like `named`."""
    return difflib.get_close_matches(_name(named).removesuffix(".yaml"), shipped_recipes())


def _name(named: Path) -> str:
    written = named.as_posix()
    return written.removeprefix("examples/").removesuffix(".yaml") if written.startswith("examples/") else written
