"""Imports go down the house only, and every room is entered through its front door.

The order below is the house, from the cellar up: a module may import what stands before it. Across rooms it imports the
room (`megatron_fork.selection`) or, in the two rooms that say so, a named module of it.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "megatron_fork"
HOUSE = (
    "version errors clock distributed vocab_parallel selection objective models checkpoint experience rewards data "
    "policy rollout evaluation analysis config console interruption run_folder traces workplace supervised start record "
    "train doctor cli __main__"
).split()
# `collectives` and `compatibility` are tools for the rooms above, not names of the room itself.
OPEN_MODULES = {"distributed"}


def imports_of(path: Path) -> list[tuple[str, str]]:
    """(room, rest of the module's name) of every import of this package."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("megatron_fork"):
            names = (
                [f"megatron_fork.{alias.name}" for alias in node.names]
                if node.module == "megatron_fork"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("megatron_fork.")]
        for name in names:
            _, room, *rest = name.split(".")
            found.append((room, ".".join(rest)))
    return found


def test_imports_go_down() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        room = parts[0]
        if room == "__init__":
            continue
        for imported, rest in imports_of(path):
            if imported == "__version__":
                continue
            if imported != room and HOUSE.index(imported) > HOUSE.index(room):
                wrong.append(f"{path.name} in {room} imports {imported}, which stands above it")
            if imported != room and rest and imported not in OPEN_MODULES:
                wrong.append(f"{path.name} in {room} imports {imported}.{rest} past the room's front door")
    assert not wrong


def test_every_room_is_in_the_order() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} == set(HOUSE)


def test_one_place_computes_log_probs() -> None:
    """Two definitions of a log-prob or an entropy would sooner or later differ."""
    words = {"log_softmax", "logsumexp", "cross_entropy", "nll_loss", "vocab_parallel_cross_entropy", "Categorical"}
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "vocab_parallel":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in words:
                found.append(f"{path.name}:{node.lineno} {name}")
    assert not found
