"""The package as a whole: cheap import, public names, who may import whom, examples in docstrings."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import afdcd_hf

ROOT = Path(afdcd_hf.__file__).parent

# Who may import whom: a part of the package imports from the layers above its own only, so that every arrow
# points the same way. Parts of one layer know nothing of each other.
LAYERS = (
    {"lazy", "messages", "atomic_io", "folder_lock", "citations", "models"},
    {"ops", "structured_files", "model_utils", "features", "registration"},
    {"adapters", "recipes", "data", "metrics", "losses"},
    {"charts"},
    {"inference"},
    {"cost"},
    {"evaluation"},
    {"export", "hub"},
    {"demo", "training"},
    {"compare"},
    {"cli"},
)
# saved with the weights, for use where this package is not installed
STANDALONE = {"models"}
HEAVY = ("torch", "transformers", "timm", "datasets")


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# Import


def test_importing_the_package_imports_nothing_heavy_and_takes_little_time():
    # CPU time: on a busy machine, wall time includes what others do
    code = (
        "import sys, time\n"
        "start = time.process_time()\n"
        "import afdcd_hf\n"
        f"print(time.process_time() - start, *[name for name in {HEAVY} if name in sys.modules])"
    )
    (seconds,) = run_python(code)
    assert float(seconds) < 0.3


REGISTRATION = """
import afdcd_hf
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING
config = AutoConfig.for_model("afdcd")
assert type(config) is afdcd_hf.AfDcdConfig
assert MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[type(config)] is afdcd_hf.AfDcdForSemanticSegmentation
assert afdcd_hf.AfDcdImageProcessor in IMAGE_PROCESSOR_MAPPING[type(config)].values()
assert type(config) in VIDEO_PROCESSOR_MAPPING  # or pipelines would ask whether to run custom code
for name in ("AfDcdConfig", "AfDcdForSemanticSegmentation", "AfDcdImageProcessor"):
    assert getattr(afdcd_hf, name)._auto_class, name  # or folders would be saved without their source
"""


def test_auto_classes_know_our_models_even_if_transformers_is_imported_first():
    run_python(f"from transformers import SegformerImageProcessor\n{REGISTRATION}")


# Public names


def test_every_public_name_resolves_to_something_of_that_name_with_a_docstring():
    assert "AfDcdForSemanticSegmentation" in afdcd_hf.__all__ and set(afdcd_hf.__all__) <= set(dir(afdcd_hf))
    for name in afdcd_hf.__all__:
        value = getattr(afdcd_hf, name)
        known_as = {"DistillationConfig": "DistillationTrainingArguments"}.get(name, name)  # trl's name for it
        assert value.__name__ == known_as and value.__doc__ and value.__module__.startswith("afdcd_hf."), name


def test_an_unknown_name_lists_the_public_ones():
    with pytest.raises(AttributeError, match="no attribute 'AfDcdLos'; public names: .*AfDcdLoss") as error:
        afdcd_hf.AfDcdLos  # noqa: B018
    assert all(name in str(error.value) for name in afdcd_hf.__all__)
    with pytest.raises(ImportError):
        importlib.import_module("afdcd_hf.nothing")
    assert not hasattr(afdcd_hf, "nothing")


# Who may import whom


def imported_modules(path):
    """Absolute dotted paths, as tuples, of everything a file imports, inside functions too."""
    package = (ROOT.name, *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, alias.name) for alias in node.names)


def imports_by_part():
    """Part of the package (top-level module or folder) -> the other parts that it imports."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).with_suffix("").parts[0]
        modules = [module for module in imported_modules(path) if module[0] == ROOT.name and len(module) > 1]
        ours = {module[1] for module in modules if module[1] != "__version__"}
        found.setdefault(part, set()).update(ours - {part})
    return found


IMPORTS = imports_by_part()


def test_what_travels_with_the_weights_imports_nothing_of_ours_and_nobody_imports_the_scripts():
    assert "data" in IMPORTS["evaluation"] and "training" in IMPORTS["cli"]  # the check sees nested imports too
    assert not any(IMPORTS[part] for part in STANDALONE)
    assert not [part for part, imported in IMPORTS.items() if "scripts" in imported]


@pytest.mark.parametrize("part", sorted(IMPORTS.keys() - {"__init__"}))
def test_a_part_imports_from_the_layers_above_it_only(part):
    (own,) = [index for index, layer in enumerate(LAYERS) if part in layer]
    assert IMPORTS[part] <= set().union(*LAYERS[:own])


# Examples


EXAMPLES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text()
}
assert {"afdcd_hf.features", "afdcd_hf.metrics.mean_iou"} <= EXAMPLES


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
