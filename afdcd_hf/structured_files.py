"""JSON files, read and written, and YAML files, which users may have edited, truncated or replaced."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .atomic_io import atomic_write

T = TypeVar("T")

# Far beyond any recipe; without limits, a file of a few lines can expand to billions of values.
_MAX_KIB, _MAX_VALUES, _MAX_DEPTH = 256, 10_000, 20
_TOO_LARGE = (
    f"more than {_MAX_VALUES:,} values (with aliases expanded) or {_MAX_DEPTH} levels of nesting: not a recipe."
)


def read_json(path: str | Path, what: str, kind: type[T] = dict) -> T:  # type: ignore[assignment]
    """Read a JSON file whose top-level value is a `kind`, such as dict or list; anything else is a ValueError.

    Errors call the file `what`, e.g. "the facts of a model card".
    """
    path = Path(path)
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} ({what}) is not valid JSON: {error}. Restore the file or write it again.") from error
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "an array"
        raise ValueError(f"{path} ({what}) must hold {wanted}, but holds {type(value).__name__}.")
    return value


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def json_values(content: Any) -> Any:
    """Return the content as JSON can hold it: NaN and infinity become None (null)."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """Read a YAML file of `key: value` lines; anything else, or too large a file, is a ValueError that names it."""
    path = Path(path)
    if path.stat().st_size > _MAX_KIB * 1024:
        raise ValueError(f"{path} is larger than {_MAX_KIB} KiB: not a recipe.")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, not a {type(content).__name__}.")
    return content


def parse_yaml(text: str) -> Any:
    """Parse a YAML text, reading unquoted words as in YAML 1.2.

    Only `true` and `false` are booleans (`no` and `off` are strings), `2e-6` is a number, and a date is a string.
    `010`, which some parsers read as 8 and others as 10, is a ValueError. So are a duplicate key, invalid YAML, and
    more or deeper values than any recipe has.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError(_TOO_LARGE) from error
    values, count = [(value, 0)], 0
    while values:  # aliases are expanded
        each, depth = values.pop()
        count += 1
        if count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ValueError(_TOO_LARGE)
        if isinstance(each, (dict, list)):
            values += [(inner, depth + 1) for inner in (each.values() if isinstance(each, dict) else each)]
    return value


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping as usual, but reject duplicate keys."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen and key.tag != _MERGE:
                problem = f"the key {key.value!r} appears twice; remove one of the two lines"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return node


def _refuse_leading_zero(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> None:
    problem = f"{node.value} can mean an octal or a decimal number; write it without leading zeros, or in quotes"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_LEADING_ZERO, _MERGE = "tag:afdcd,leading-zero", "tag:yaml.org,2002:merge"
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_MERGE, r"<<", "<"),
    (_LEADING_ZERO, r"[-+]?0[0-9_]+", "-+0"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(_LEADING_ZERO, _refuse_leading_zero)
