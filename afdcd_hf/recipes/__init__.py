"""Recipes: one YAML file per training, flat keys = argument names, every value with its source.

Keys of a loss's options carry its name in front: `af_dcd.feature_weight`. `comparisons/` holds the plans of
`afdcd compare`.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path(__file__).parent
_COMPARISONS = _FOLDER / "comparisons"


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def list_comparisons() -> list[str]:
    """Names of the plans of `afdcd compare` that come with the package."""
    return sorted(path.stem for path in _COMPARISONS.glob("*.yaml"))


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe given by name (`camvid_cpu`) or by path.

    Raises:
        FileNotFoundError: neither a file nor a known name; the known ones are listed.
    """
    return _find(name_or_path, _FOLDER, "recipe")


def comparison_path(name_or_path: str | Path) -> Path:
    """The file of a comparison's plan given by name (`scenes`) or by path.

    Raises:
        FileNotFoundError: neither a file nor a known name; the known ones are listed.
    """
    return _find(name_or_path, _COMPARISONS, "comparison")


def _find(name_or_path: str | Path, folder: Path, what: str) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    bundled = folder / f"{name_or_path}.yaml"
    if bundled.is_file():
        return bundled
    known = sorted(one.stem for one in folder.glob("*.yaml"))
    close = difflib.get_close_matches(str(name_or_path), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(f"No {what} {str(name_or_path)!r}.{hint} Known {what}s: {', '.join(known)}.")


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """Read a recipe.

    Returns:
        Argument name -> value, as written in the file.

    Raises:
        FileNotFoundError: see `recipe_path`.
        ValueError: not valid YAML, or not a flat mapping.
    """
    return {str(key): value for key, value in read_mapping(recipe_path(name_or_path)).items()}


def read_mapping(path: Path) -> dict[Any, Any]:
    """Read a YAML file of `key: value` lines, numbers as people write them; ValueError where it is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, not a {type(content).__name__}.")
    return as_numbers(content)


def as_numbers(value: Any) -> Any:
    """YAML 1.1 reads 2e-6 (without a dot) as text; everybody who writes it means a number. At every depth."""
    if isinstance(value, dict):
        return {key: as_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_numbers(one) for one in value]
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def parse_json_object(name: str, text: str) -> dict:
    """Read an argument given as text on the command line, e.g. '{"stem_type": "deep"}'.

    Raises:
        ValueError: not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={text!r} is not valid JSON ({error}); write e.g. '{{\"key\": 1}}'.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}={text!r} must be a JSON object such as '{{\"key\": 1}}'.")
    return value
