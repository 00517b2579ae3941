"""Imports go down the house only, and every room is entered through its front door.

The order below is the house, from the cellar up: a module may import what stands before it. Across rooms it imports the
room (`megatron_fork.selection`) or, in the two rooms that say so, a named module of it.
"""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "megatron_fork"
HOUSE = (
    "errors files clock recipe cluster distributed vocab_parallel serving selection objective models checkpoint conversion "
    "experience traces rewards data policy rollout evaluation analysis config planning run train preflight cli __main__"
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
            if imported in ("__version__", "opened"):
                continue
            if imported != room and HOUSE.index(imported) > HOUSE.index(room):
                wrong.append(f"{path.name} in {room} imports {imported}, which stands above it")
            if imported != room and rest and imported not in OPEN_MODULES:
                wrong.append(f"{path.name} in {room} imports {imported}.{rest} past the room's front door")
    assert not wrong


def test_every_room_is_in_the_order() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} == set(HOUSE)


@pytest.mark.parametrize("room", [name for name in HOUSE if (PACKAGE / name).is_dir()])
def test_a_room_has_what_it_exports(room: str) -> None:
    """Also where it is fetched only when it is asked for."""
    opened = importlib.import_module(f"megatron_fork.{room}")
    for name in opened.__all__ if "__all__" in vars(opened) else []:
        assert getattr(opened, name) is not None
    with pytest.raises(AttributeError):
        opened.no_such_name  # noqa: B018


def test_a_name_of_a_room_is_no_module_whichever_is_asked_for_first() -> None:
    """A run that saved before its loop began, as one that waits for servers does, found a module under `run.checkpointing`."""
    asked = "import megatron_fork.run as run; run.save; assert callable(run.checkpointing), run.checkpointing"
    subprocess.run([sys.executable, "-c", asked], check=True, env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)})


def test_programs_with_the_former_names_of_config_classes_go_on() -> None:
    """Every room's class was called `Config` once; each is named for its room today."""
    rooms = [name for name in HOUSE if (PACKAGE / name / "config.py").is_file() or name == "rewards"]
    for name in rooms:
        room = importlib.import_module(f"megatron_fork.{name}")
        assert room.Config.__name__.endswith("Config") and room.Config.__name__ in room.__all__
        assert room.Config is vars(room)[room.Config.__name__]


ROOT = PACKAGE.parent


def shared_wrongly(path: str, source: str) -> list[str]:
    """What `source`, a file of tests/ or benchmarks/, imports of another's test, benchmark or conftest."""
    tests = {test.stem for test in (ROOT / "tests").rglob("*.py") if "support" not in test.parts} | {"tests"}
    benchmarks = {file.stem for file in (ROOT / "benchmarks").iterdir()} | {"benchmarks"}
    forbidden = tests | benchmarks if path.startswith("tests/") else tests
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.level:
                found.append(f"{path}:{node.lineno}: an import of a neighbour")
        found += [f"{path}:{node.lineno}: {name}" for name in names if name.split(".")[0] in forbidden]
    return found


def test_tests_and_benchmarks_share_only_what_stands_in_support() -> None:
    """A test that another imports cannot be read or changed alone."""
    found = []
    for folder in ("tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            found += shared_wrongly(path.relative_to(ROOT).as_posix(), path.read_text())
    assert not found


def test_outside_support_a_file_of_tests_is_collected_or_run_by_one() -> None:
    """No loose helpers: a test, a conftest, or a program that the test beside it starts."""
    programs = {"colocated_checks.py", "sitecustomize.py"}
    for path in (ROOT / "tests").rglob("*.py"):
        named = path.name.startswith("test_") or path.name == "conftest.py" or path.name in programs
        assert named or "support" in path.parts, path


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tests/data/test_split.py", "from test_packing import batch_of"),
        ("tests/data/test_split.py", "def inside():\n    import test_packing as packing"),
        ("tests/engines/test_keys.py", "from conftest import new_model"),
        ("tests/rewards/test_attack.py", "from rewards_attack import attack"),
        ("tests/rewards/test_attack.py", "import benchmarks.rewards_attack"),
        ("tests/rewards/test_attack.py", "from head.measure import machine"),
        ("tests/rewards/test_attack.py", "from .test_pool import here"),
        ("tests/support/parity.py", "from test_collector import parity"),
        ("benchmarks/kills.py", "from test_kills import Saver"),
        ("benchmarks/kills.py", "from tests.checkpoint.test_kills import Saver"),
    ],
)
def test_sharing_otherwise_is_noticed(path: str, source: str) -> None:
    assert shared_wrongly(path, source)


@pytest.mark.parametrize("path", ["tests/data/test_split.py", "benchmarks/kills.py", "tests/support/saver.py"])
def test_sharing_through_support_is_meant(path: str) -> None:
    assert not shared_wrongly(path, "from support.saver import main\nfrom support import saver\nimport support.saver")


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


# The one file that may tell one megatron-core from another; everything else is written for all of them.
VERSION_FILE = "distributed/versions.py"


def version_branches(source: str) -> list[str]:
    """Places in `source` that ask which megatron-core is installed, or try whether it has a name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try | ast.With) and misses_are_caught(node) and any(map(names_megatron, node.body)):
            found.append(f"{node.lineno}: an import of megatron that may fail")
        if isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [f"{'.'.join([*modules, alias.name])}" for alias in node.names]
            if any(name.startswith(("packaging", "megatron.core.package_info")) for name in modules):
                found.append(f"{node.lineno}: a comparison of versions")
            if "megatron.core.__version__" in modules:
                found.append(f"{node.lineno}: megatron-core's version")
        if isinstance(node, ast.Attribute) and node.attr in ("__version__", "version_info"):
            found.append(f"{node.lineno}: .{node.attr}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("hasattr", "signature", "inspect.signature"):
                found.append(f"{node.lineno}: {called}")
            if any(
                isinstance(word, ast.Constant) and word.value in ("megatron-core", "megatron_core")
                for word in node.args
            ):
                found.append(f"{node.lineno}: megatron-core's version")
    return found


def misses_are_caught(node: ast.Try | ast.With) -> bool:
    caught = (
        [handler.type for handler in node.handlers]
        if isinstance(node, ast.Try)
        else [item.context_expr for item in node.items]
    )
    text = " ".join("Exception" if each is None else ast.unparse(each) for each in caught)
    return any(name in text for name in ("ImportError", "ModuleNotFoundError", "AttributeError", "Exception"))


def names_megatron(statement: ast.stmt) -> bool:
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "megatron":
            return True
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "megatron" for alias in node.names):
            return True
    return False


def test_one_place_tells_versions_of_megatron_apart() -> None:
    """What differs between the supported versions must be found, and one day dropped, in one place."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).as_posix() != VERSION_FILE:
            found += [f"{path.name}:{place}" for place in version_branches(path.read_text())]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    from megatron.core.models.gpt import GPTModel\nexcept ImportError:\n    GPTModel = None",
        "with contextlib.suppress(ImportError):\n    import megatron.core.recompute",
        "from packaging.version import Version",
        "from megatron.core import __version__",
        "from megatron.core.package_info import __version__",
        "import megatron.core\nnew = megatron.core.__version__ > '0.17'",
        "new = importlib.metadata.version('megatron-core') > '0.17'",
        "new = sys.version_info >= (3, 12)",
        "new = hasattr(moe_utils, 'te_general_gemm')",
        "new = 'padding_mask' in inspect.signature(GPTModel._postprocess).parameters",
    ],
)
def test_telling_versions_apart_is_noticed(source: str) -> None:
    assert version_branches(source)
