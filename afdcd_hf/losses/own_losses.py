"""A loss of the user's own, named in a recipe as `my_file.py:MyLoss`, or by an entry point of an installed package."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from .base import DistillationLoss


def load_own_loss(word: str) -> tuple[str, type[DistillationLoss]] | None:
    """Find the class that a word of a recipe's loss names, and what the loss is called.

    The word is `path/to/file.py:ClassName`, the path relative to the working directory, or the name of an entry point
    of the group `afdcd_hf.losses`; None for any other. The file is run, as `import` would; ValueError where there is
    no such file or class, its code fails, or the class is not a `DistillationLoss`.
    """
    path, colon, name = word.rpartition(":")
    if colon and path.endswith(".py"):
        found = getattr(_module(path), name, None)
        if found is None:
            raise ValueError(f"loss={word!r}: {path} defines no {name!r}.")
    else:
        entry = next(iter(entry_points(group="afdcd_hf.losses", name=word)), None)
        if entry is None:
            return None
        name, found = word, entry.load()
    if not (isinstance(found, type) and issubclass(found, DistillationLoss)):
        raise ValueError(f"loss={word!r} is {found!r}; expected a subclass of afdcd_hf.DistillationLoss.")
    return name, found


def _module(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ValueError(f"the loss {path!r} is not a file in {Path.cwd()}; give the path of a Python file.")
    # a name of its own, under which the classes can be found again when they are unpickled in this process
    name = f"afdcd_own_loss_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # the suffix is .py
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"the loss file {path} fails with {type(error).__name__}: {error}") from error
    return sys.modules[name]
