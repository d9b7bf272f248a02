"""JSON files, read and written, and YAML files: someone may have edited, cut short or replaced them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .atomic_io import written_whole

T = TypeVar("T")

# Far beyond any recipe; a file of a few lines can otherwise stand for thousands of millions of values.
_MOST_KIB, _MOST_VALUES, _DEEPEST = 256, 10_000, 20
_TOO_LARGE = (
    f"more than {_MOST_VALUES:,} values (aliases counted as what they repeat) or {_DEEPEST} levels of nesting: this is "
    "no recipe."
)


def read_json(path: str | Path, what: str, kind: type[T] = dict) -> T:  # type: ignore[assignment]
    """Read a JSON file whose outermost value is a dict or list, as `kind` says; another is a ValueError.

    `what` the file is, such as "the facts of a model card", stands in errors.
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
    """Write a JSON file whole, or not at all."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def json_values(content: Any) -> Any:
    """The content as JSON can hold it: NaN and infinity, which it cannot, become null."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """Read a YAML file of `key: value` lines; anything else, or a file too large, is a ValueError that names it."""
    path = Path(path)
    if path.stat().st_size > _MOST_KIB * 1024:
        raise ValueError(f"{path} is larger than {_MOST_KIB} KiB: this is no recipe.")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, not a {type(content).__name__}.")
    return content


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for, with plain words read as in YAML 1.2.

    Only `true` and `false` are truth values (`no` and `off` are words), `2e-6` is a number, a date is text, and `010`,
    which is 8 to some readers and 10 to others, is a ValueError; so is a key that stands twice, what is not valid YAML,
    and more or deeper values than any recipe has.
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
    while values:  # an alias counts as what it repeats
        each, depth = values.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError(_TOO_LARGE)
        if isinstance(each, (dict, list)):
            values += [(inner, depth + 1) for inner in (each.values() if isinstance(each, dict) else each)]
    return value


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As ever, but a key may stand only once."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen and key.tag != _MERGE:
                problem = f"the key {key.value!r} stands twice; remove one of the two lines"
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
