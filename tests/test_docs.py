"""Every code block of the docs: Python runs, command lines parse, YAML is read by its own reader; the notebook runs.

A block that cannot be run offline has `<!-- not run: WHY -->` in the line before it.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from command_line import saved_model
from images import labelled_image
from packaging.requirements import Requirement
from paths import DOCS, ROOT

from afdcd_hf.cli import _command, _parser, main
from afdcd_hf.compare.plan import load_plan
from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.hub.release import read_release_plan
from afdcd_hf.recipes import load_recipe
from afdcd_hf.training.recipe_arguments import parse_arguments, read_value, training_part, words_by_option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = [*(ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md")), *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"(?:<!-- not run: (?P<why>.+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
ELSEWHERE = {".", "awk", "cd", "git", "grep", "hf", "ls", "npm", "pre-commit", "python3", "uv"}  # not ours to check


class Block(NamedTuple):
    page: Path
    line: int  # of the fence
    language: str
    text: str
    why: str | None  # why it is not run

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"], found["text"], found["why"])


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = {
    page.name: found
    for page in PAGES
    if (found := [block for block in blocks(page) if block.language == "python" and not block.why])
}


def in_language(*languages: str) -> Any:
    return pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in languages], ids=str)


def test_every_block_is_of_a_checked_kind_and_few_are_not_run():
    assert {block.language for block in BLOCKS} <= {"", "python", "bash", "console", "yaml", "bibtex", "js"}
    assert sum(page.read_text("utf-8").count("\n```") for page in PAGES) == 2 * len(BLOCKS)
    assert not [str(block) for block in BLOCKS if not block.language and re.search("^afdcd ", block.text, re.M)]
    assert [str(block) for block in BLOCKS if block.why and block.language != "python"] == []
    assert sum(block.why is not None for block in BLOCKS) <= 3


# Python


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the pages take for granted: saved models, images, and the output of commands above a block."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("runs/distilled", "runs/quickstart/distilled"):
        saved_model(folder / name, "scenes")
    (folder / "model_cards").symlink_to(ROOT / "model_cards")
    for name in ("street.png", "photo.jpg"):
        labelled_image(0, 8, 64, 96)["image"].save(folder / name)
    raw = ["--format", "onnx", "--with_preprocessing", "--upsample", "--argmax", "--output", str(folder / "raw.onnx")]
    for options in (raw, ["--format", "timm", "--output", str(folder / "backbone")]):
        assert main(["export", str(folder / "runs/distilled"), *options]) == 0
    return folder


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs_in_the_order_of_its_page(page, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setitem(BENCHMARKS, "scenes", replace(BENCHMARKS["scenes"], split_sizes={"train": 8, "val": 4}))
    if any("segmentation_models_pytorch" in block.text for block in PYTHON[page]):
        pytest.importorskip("segmentation_models_pytorch")
    names: dict[str, Any] = {"__name__": "page"}
    for block in PYTHON[page]:
        exec(compile("\n" * block.line + block.text, block.page, "exec", dont_inherit=True), names)
        for stated in re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.M):
            assert stated == ", ".join(line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()[-3:])
        if "trainer" in block.text:
            trainer = names["trainer"]
            assert trainer.state.global_step == trainer.args.max_steps
            assert (Path(trainer.args.output_dir) / "model.safetensors").is_file()


# Command lines


def command_lines(block: Block) -> Iterator[list[str]]:
    """Split each command into words, without leading variables."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while "=" in command[0]:
                command = command[1:]
            yield command


@in_language("bash", "console")
def test_command_lines_name_what_exists(block):
    lines = list(command_lines(block))
    assert lines
    for words in lines:
        check(*words)


def check(program: str, *words: str) -> None:
    """Raise unless command, options, script, target or extra exists."""
    ours = [index for index, word in enumerate(words) if word in ("scripts/train.py", "scripts/distill.py")]
    if program == "afdcd":
        check_afdcd(list(words))
    elif ours:  # of python, torchrun, uv run or hf jobs
        check_afdcd([Path(words[ours[0]]).stem, *words[ours[0] + 1 :]])
    elif program == "python" and words[:2] == ("-m", "pytest"):
        assert (ROOT / words[-1]).exists(), words
    elif program == "python":
        (script,) = (path for path in (ROOT, ROOT / "afdcd_hf/demo/space_files") if (path / words[0]).is_file())
        source = (script / words[0]).read_text("utf-8")
        assert not [word for word in words if word.startswith("--") and f'"{word}"' not in source], words
    elif program == "make":
        assert re.search(f"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif program == "pip":
        check_installation(*words)
    else:
        assert program in ELSEWHERE, (program, *words)


def check_afdcd(words: list[str]) -> None:
    command, words = _command(_parser()[1].choices, words)
    options = command.options(words)
    name, rest = command.prog.split()[-1], options.pop("rest", [])
    if name == "compare" and not options["list_plans"]:
        overrides = {key: read_value(key, values) for key, values in words_by_option(rest).items()}
        load_plan(options["config"], overrides).narrowed(options["methods"], options["seeds"])
    elif name in ("train", "distill"):
        recipe = load_recipe(options["config"])
        parse_arguments(recipe if name == "distill" else {}, rest, distils=name == "distill")


def check_installation(verb: str, *words: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {Requirement(one).name for one in [*project["dependencies"], *sum(extras.values(), [])]}
    assert verb == "install"
    for word in words:
        if word != "-e":
            asked = Requirement(re.sub(r"^\.", project["name"], word))
            assert asked.name in known | {project["name"]}
            assert asked.extras <= set(extras)


# YAML


@in_language("yaml")
def test_yaml_is_accepted_by_its_reader(block, tmp_path):
    file, content = tmp_path / "file.yaml", yaml.safe_load(block.text)
    file.write_text(block.text)
    if "methods" in content:
        load_plan(file)
    elif "checkpoints" in content:
        read_release_plan(file)
    else:
        recipe = load_recipe("quickstart")
        parse_arguments({**(training_part(recipe) if "loss" in content else recipe), **load_recipe(file)}, distils=True)


def test_the_notebook_runs_and_is_kept_without_outputs(tmp_path):
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "from_data_to_hub.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert "% mIoU**, measured on generated street scenes, split val (a part of it: 8 images)" in printed
    assert "bytes  model.safetensors" in printed and "bytes  predictions.png" in printed
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2  # an image of the data, and the models' predictions
