"""Common to all commands: option spelling, errors, help, secrets, exit status, tab completion."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import answer, saved_model

from afdcd_hf import __version__
from afdcd_hf.cli import _error_line, _parser, main
from afdcd_hf.cli.command import Command, parse_titles
from afdcd_hf.messages import plain_message
from afdcd_hf.recipes import list_recipes, load_recipe, recipe_path

TOKEN = "hf_" + "a1B2c3D4e5" * 3


def commands() -> dict[str, Command]:
    return _parser()[1].choices


EXPORT = ["export", "m", "--format", "onnx", "--output", "m.onnx"]
CONVERT = ["convert", "--checkpoint", "x.pth", "--output_dir", "out"]
MISTAKES = {
    "a mistyped command": (["trian"], "afdcd: unknown command 'trian'. Close: train"),
    "a mistyped kind of chart": (["chart", "curvs"], "afdcd: unknown kind of chart 'curvs'. Close: curves"),
    "a mistyped option": (["evaluate", "--modle", "x"], "afdcd evaluate: unknown option --modle. Close: --model"),
    "a mistyped option of a training": (["train", "--cofig", "x"], "Unknown argument 'cofig'. Close: config"),
    "a missing kind of chart": (["chart"], "the following arguments are required: KIND"),
    "a missing option": (["evaluate", "--model", "m"], "the following arguments are required: --dataset"),
    "scales": (["evaluate", "--model", "m", "--dataset", "d", "--scales", "1e6"], "'1e6' must be a number above 0"),
    "a device": (["evaluate", "--model", "m", "--dataset", "d", "--device", "gpu"], "device 'gpu' cannot be used here"),
    "a size": (["profile", "m", "--size", "0", "8"], "'0' must be a whole number from 1 to 65536"),
    "a choice": (["profile", "m", "--precision", "fp8"], "invalid choice: 'fp8'"),
    "a format with a page": (["export", "m", "--web", "w", "--format", "onnx"], "--format cannot be used with --web"),
    "no file to write": (["export", "m", "--format", "onnx"], "--format and --output, or --web DIR"),
    "a runtime without a page": ([*EXPORT, "--onnxruntime_web", "x"], "--onnxruntime_web can only be used with --web"),
    "no kind of network": (CONVERT, "Give --network, such as deeplabv3_resnet18"),
    "a backbone's data set": ([*CONVERT, "--backbone_only", "--dataset", "voc"], "--dataset cannot be used with"),
    "a page with the options of a Space": (
        ["demo", "m", "--title", "T", "--overwrite"],
        "--title and --overwrite cannot be used without --write_space",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_line_and_status_2(capsys, mistake):
    argv, words = MISTAKES[mistake]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_options_are_spelled_consistently_and_output_folders_are_output_dir():
    options = {name: set(parser._option_string_actions) for name, parser in commands().items()}
    every = set().union(*options.values())
    assert not [name for name in every if "-" in name.removeprefix("-").removeprefix("-")]
    for name in ("quickstart", "compare", "predict"):
        assert "--output_dir" in options[name] and "--output" not in options[name]
    assert {"--output_dir", "--output"} <= options["convert"]  # a folder; with --backbone_only, a file
    tables = {name for name in options if "--json" in options[name]}
    assert tables == {"list", "datasets", "recipes", "profile", "verify", "evaluate", "compare"}


def test_dashes_and_earlier_spellings_are_understood():
    predict = commands()["predict"]
    words = ["a.png", "--model=m", "--output", "out", "--as-labels", "--window", "16", "16"]
    assert predict.options(words) == predict.options(
        ["a.png", "--model", "m", "--output_dir", "out", "--as_labels", "--window", "16", "16"]
    )
    assert commands()["compare"].options(["--", "-x-y", "--a-b=c-d"])["rest"] == ["--", "-x-y", "--a_b=c-d"]


def test_a_folder_with_an_equals_sign_in_its_name_is_no_title(tmp_path):
    run = tmp_path / "lr=0.01"
    assert parse_titles([str(run)]) == {str(tmp_path / "lr"): "0.01"}
    run.mkdir()
    assert parse_titles([str(run), "B=other"]) == {"lr=0.01": str(run), "B": "other"}


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_an_example_that_parses_and_names_its_defaults(name):
    parser = commands()[name]
    example = parser.epilog.splitlines()[1].split()
    assert example[:2] == ["afdcd", name]
    words = example[2:]
    if name == "chart":
        parser, words = parser.get_default("kinds").choices[words[0]], words[1:]
    parser.options(words)
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        if action.default not in (None, False, [], "==SUPPRESS==") and action.option_strings:
            shown = action.default if not isinstance(action.default, list) else " ".join(map(str, action.default))
            assert f"(default {shown})" in text, action.option_strings


def test_help_version_exit_statuses_and_tab_completion(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in commands()) and "exit status:" in text
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"afdcd {__version__}\n"
    assert main(["--print_completion", "bash"]) == 0
    assert "--boundary_ratio" in capsys.readouterr().out


def test_an_unexpected_error_is_one_line_with_its_type_and_a_file_with_the_traceback(monkeypatch, capsys):
    def fail(*_):
        raise KeyError(f"step of {TOKEN}\nand more")

    monkeypatch.setattr("afdcd_hf.recipes.list_recipes", fail)
    assert main(["recipes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("afdcd recipes: KeyError: ") and TOKEN not in line and "hf_***" in line
    path = Path(line.split("(traceback: ")[1].rstrip(")"))
    text = path.read_text()
    path.unlink()
    assert "Traceback" in text and "in fail" in text and TOKEN not in text
    monkeypatch.setenv("AFDCD_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["recipes"])


def test_after_sigterm_temporary_files_are_removed(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
import afdcd_hf.recipes
from afdcd_hf.atomic_io import atomic_folder
from afdcd_hf.cli import main

def terminated():
    with atomic_folder(Path("out")):
        os.kill(os.getpid(), signal.SIGTERM)

afdcd_hf.recipes.list_recipes = terminated
sys.argv = ["afdcd", "recipes"]
main()
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == 143
    assert not list(tmp_path.iterdir())


def test_tokens_are_never_printed(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(f"hub_token {TOKEN}\n")
    for argv in (["train", TOKEN], ["train", f"--{TOKEN}", "x"], ["train", "--config", str(tmp_path / "r.yaml")]):
        assert main(argv) == 2
        assert TOKEN not in capsys.readouterr().err


def test_recipes_and_benchmarks_are_listed_and_printed_as_text_or_json(capsys):
    assert main(["datasets", "--json"]) == 0
    assert {"voc", "camvid"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.split() == list_recipes()
    assert main(["recipes", "quickstart"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == recipe_path("quickstart").read_text().rstrip("\n")
    for argv, expected in ((["--json"], list_recipes()), (["quickstart", "--json"], load_recipe("quickstart"))):
        assert main(["recipes", *argv]) == 0
        assert json.loads(capsys.readouterr().out) == expected
    assert "Known recipes" in answer(capsys, "recipes", "nope")


LIGHT = (["--help"], ["recipes"], ["train", "--help"], ["distill", "--max_steps", "x"], ["evaluate", "--modle", "x"])


def test_help_and_mistakes_import_nothing_heavy():
    code = (
        "import sys\nfrom afdcd_hf.cli import main\n"
        f"for argv in {LIGHT!r}:\n    try: main(argv)\n    except SystemExit: pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("False False False") and "distill" in done.stdout


def config(**changes):
    def spoil(folder: Path) -> None:
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**written, **changes}))

    return spoil


EVIL = {"model_type": "evil", "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForSemanticSegmentation"), "evil.A")}
SPOILT = (
    (shutil.rmtree, "is neither a local folder nor a Hub id"),
    (lambda folder: (folder / "model.safetensors").write_text("<html>"), "cannot be loaded as a segmenter"),
    (config(head_channels=4), "weights whose shapes do not match its config.json"),
    (config(**EVIL), "needs custom code (auto_map in its config.json), which is not run"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
)


def test_a_damaged_model_folder_is_reported_in_one_line_that_names_it(tmp_path, capsys):
    whole = saved_model(tmp_path / "model", "scenes")
    for number, (spoil, words) in enumerate(SPOILT):
        folder = shutil.copytree(whole, tmp_path / str(number))
        spoil(folder)
        options = ["--dataset", "scenes", "--max_samples", "1", "--device", "cpu"]
        line = answer(capsys, "evaluate", "--model", str(folder), *options)
        assert words in line and str(folder) in line


LEAVE_TWO_GROUPS = """
from pathlib import Path
import torch
from torch import distributed
from afdcd_hf.cli import leave_process_group

def threads_of_gloo():
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
holder = [distributed.new_group(backend="gloo")]
holder.append(holder)  # as a trainer: it refers to itself, so that only the garbage collector frees it
distributed.all_reduce(torch.ones(8), group=holder[0])
before = threads_of_gloo()
del holder
leave_process_group()
print(before > 0, distributed.is_initialized(), threads_of_gloo())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_process_group_and_none_of_its_threads_is_left_behind():
    done = subprocess.run([sys.executable, "-c", LEAVE_TWO_GROUPS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False", "0"]


# Errors in data workers are reduced to their message

TRACEBACK = (
    "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    '  File "a.py", line 1, in f\nOSError: truncated\n\nThe above exception was the direct cause of the following '
    'exception:\n\n  File "b.py", line 2, in g\nsome.module.OSError: b.png: damaged\n'
)


def test_the_message_is_found_in_a_workers_traceback_whatever_precedes_it():
    assert _error_line(OSError(TRACEBACK)) == "b.png: damaged."
    assert plain_message(ValueError("two\n lines!")) == "two lines!"
    assert plain_message(RuntimeError()) == "RuntimeError."
