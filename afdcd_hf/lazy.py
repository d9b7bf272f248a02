"""Public names of a package that are imported on first use: reading a table must not import torch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package.

    Its public names are those that its `__init__.py` imports under `if TYPE_CHECKING:`, which is also where type
    checkers and editors find them: each name stands in one place.

    Args:
        package: its `__name__`.
    """
    module_of = _names_for_type_checkers(package)

    def get(name: str) -> Any:
        if name not in module_of:
            known = ", ".join(sorted(module_of))
            raise AttributeError(f"module {package!r} has no attribute {name!r}; public names: {known}")
        value = getattr(import_module(f".{module_of[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return get, names, sorted(module_of)


def _names_for_type_checkers(package: str) -> dict[str, str]:
    """Name -> module, relative to the package."""
    spec = sys.modules[package].__spec__
    source = spec.loader.get_source(package)  # type: ignore[union-attr]
    blocks = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    imports = (
        node
        for block in blocks
        if isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    )
    # a dot less than in the import, since `import_module` gets one in front
    return {alias.name: "." * (node.level - 1) + (node.module or "") for node in imports for alias in node.names}
