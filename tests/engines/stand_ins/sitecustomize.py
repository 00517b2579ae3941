"""Lets SGLang start on a CPU without packages that it imports and does not need there: the names exist, using them raises.

It also reports its routing there: memory that it would pin for a GPU's copies stays as it is.

Python runs this file at start-up when its folder is on PYTHONPATH. Only for tests: a GPU installation has the packages.
"""

import importlib.abc
import importlib.machinery
import sys
import types

ABSENT = {"torchvision", "torchaudio", "sgl_kernel"}


class Members(type):
    """Of a class whose members are read at import, such as an enumeration: each is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandIn(types.ModuleType):
    """A module in which every public name is a class that cannot be used."""

    __path__ = ()
    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        where = f"{self.__name__}.{name}"

        def refuse(self: object, *args: object, **options: object) -> None:
            raise RuntimeError(f"{where} is a stand-in for tests on a CPU")

        return Members(name, (), {"__init__": refuse})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes stand-ins for imports, and stays silent where a library only asks whether a package is there."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ABSENT or _only_asks():
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        """There is nothing to run."""


def _only_asks() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "find_spec" and frame.f_code.co_filename.endswith("importlib/util.py"):
            return True
        frame = frame.f_back
    return False


class Unpinned(importlib.abc.MetaPathFinder):
    """Loads SGLang's host buffers with a function that asks CUDA's runtime for nothing."""

    NAME = "sglang.srt.mem_cache.pool_host.common"

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == self.NAME else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            if not module.torch.cuda.is_available():
                module._cuda_host_register = lambda *arguments, **options: None

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.append(Finder())
sys.meta_path.insert(0, Unpinned())
