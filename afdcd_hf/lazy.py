"""Lazy imports of a package's public names, so that reading a table, say, does not import torch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for the package whose `__name__` is `package`.

    The public names are those that its `__init__.py` imports under `if TYPE_CHECKING:`. Type checkers and editors find
    them there too, so that each name is listed once.
    """
    module = sys.modules[package]
    source = module.__spec__.loader.get_source(package)  # type: ignore[union-attr]
    module_of: dict[str, str] = {}
    for block in ast.parse(source).body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            for node in block.body:
                if isinstance(node, ast.ImportFrom):
                    module_of |= {alias.name: "." * node.level + (node.module or "") for alias in node.names}

    def get(name: str) -> Any:
        if name not in module_of:
            known = ", ".join(sorted(module_of))
            raise AttributeError(f"module {package!r} has no attribute {name!r}; public names: {known}")
        value = getattr(import_module(module_of[name], package), name)
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *module_of}), sorted(module_of)
