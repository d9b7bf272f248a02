"""Recipes: one YAML file per training, flat keys = argument names, every value with its source.

Options of a loss are prefixed with its name: `af_dcd.feature_weight`. `comparisons/` has the plans of
`afdcd compare`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..messages import close_names
from ..structured_files import read_yaml

_FOLDER = Path(__file__).parent
_COMPARISONS = _FOLDER / "comparisons"


def list_recipes() -> list[str]:
    """List the names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def list_comparisons() -> list[str]:
    """List the names of the `afdcd compare` plans that come with the package."""
    return sorted(path.stem for path in _COMPARISONS.glob("*.yaml"))


def recipe_path(name_or_path: str | Path) -> Path:
    """Find the file of a recipe given by name (`camvid_lite0`) or path; a FileNotFoundError lists the known names."""
    return _find(name_or_path, _FOLDER, "recipe")


def comparison_path(name_or_path: str | Path) -> Path:
    """Find the file of a comparison plan given by name (`scenes`) or path; FileNotFoundError lists the known names."""
    return _find(name_or_path, _COMPARISONS, "comparison")


def _find(name_or_path: str | Path, folder: Path, what: str) -> Path:
    path = Path(name_or_path).expanduser()
    if path.is_file():  # neither a folder nor a pipe
        return path
    bundled = folder / f"{name_or_path}.yaml"
    if bundled.is_file():
        return bundled
    known = sorted(one.stem for one in folder.glob("*.yaml"))
    raise FileNotFoundError(
        f"No {what} {str(name_or_path)!r}: neither a file nor a known name.{close_names(str(name_or_path), known)} "
        f"Known {what}s: {', '.join(known)}."
    )


def load_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """Read a recipe: argument name -> value, as written in its file; raises as `recipe_path` and `read_yaml` do."""
    return {str(key): value for key, value in read_yaml(recipe_path(name_or_path)).items()}


def parse_json_object(name: str, text: str) -> dict:
    """Parse an argument given as a JSON object, e.g. '{"stem_type": "deep"}', or raise a ValueError."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{name}={text!r} is not valid JSON ({error}); write e.g. '{{\"key\": 1}}'.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}={text!r} must be a JSON object such as '{{\"key\": 1}}'.")
    return value
