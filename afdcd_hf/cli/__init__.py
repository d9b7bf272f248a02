"""The `afdcd` command. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from .. import __version__
from ..messages import close_names, plain_message, without_tokens
from . import evaluation, hub, show, training
from .command import Command

_EXIT_CODES = """exit status:
  0    done
  1    `afdcd verify`: the card's number does not hold; `afdcd release`: a model was not published
  2    a mistake in the command or its files, or a failure; one line says which
  130  interrupted (Ctrl-C); 143: stopped by SIGTERM. Trainings save first.
AFDCD_TRACEBACK=1 in the environment shows where an error comes from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2, with one line on standard error, where anything goes wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    name, hint = "afdcd", ""
    try:
        parser, commands = _parser()
        if not words or words[0].startswith("-"):
            return _answer(parser, words)
        command, words = _command(commands.choices, words)
        name, hint = command.prog, command.on_interruption
        quieten()
        options = command.options(words)  # --help ends here, as does `afdcd chart` without a kind
        status = command.run(**options) if command.run else None
        leave_process_group()
        return status or 0
    except KeyboardInterrupt as interruption:  # TrainingInterrupted among them: a signal that was answered by saving
        said = f"{str(interruption) or 'interrupted'}{hint and '; '}{hint}"
        print(f"\n{name}: {without_tokens(said)}", file=sys.stderr)
        return getattr(interruption, "exit_status", 130)
    except BrokenPipeError:  # `afdcd datasets voc | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain on leaving
        return 141
    except Exception as error:
        if os.environ.get("AFDCD_TRACEBACK"):
            raise
        print(f"{name}: {_in_words(error)}", file=sys.stderr)
        return 2


def _parser() -> tuple[Command, argparse._SubParsersAction]:
    text = "small, accurate semantic segmenters by distillation"
    parser = Command("afdcd", text, "COMMAND [options]", example="quickstart")
    parser.epilog = f"{parser.epilog}\n\n{_EXIT_CODES}"
    parser.add_argument("--version", action="version", version=f"afdcd {__version__}")
    parser.add_argument("--print_completion", choices=("bash", "zsh", "tcsh"), help="print tab completion for a shell")
    commands = parser.add_subparsers(
        title="commands (afdcd COMMAND --help)", dest="command", metavar="COMMAND", prog="afdcd", parser_class=Command
    )
    for file in (training, evaluation, show, hub):
        file.add_commands(commands)
    return parser, commands


def _answer(parser: Command, words: Sequence[str]) -> int:
    """What concerns no command."""
    shell = parser.options(words)["print_completion"]
    if shell:
        import shtab

        print(shtab.complete(parser, shell))
    else:
        parser.print_help()
    return 0


def _command(known: dict[str, Command], words: list[str]) -> tuple[Command, list[str]]:
    """The parser of the command that the first words name, and the words that follow."""
    what = "command"
    if words[0] == "chart" and len(words) > 1 and not words[1].startswith("-"):
        known, words, what = known["chart"].get_default("kinds").choices, words[1:], "kind of chart"
    if words[0] not in known:
        hint = close_names(words[0], known) or f" There are {', '.join(known)}."
        raise ValueError(f"unknown {what} {words[0]!r}.{hint}")
    return known[words[0]], words[1:]


def _in_words(error: Exception) -> str:
    """An error as a line; of one that nobody foresaw also its type and a file with the traceback."""
    text = without_tokens(plain_message(error) if str(error).startswith("Caught ") else str(error))
    if isinstance(error, (ValueError, OSError)):
        return text
    line = f"{type(error).__name__}: {' '.join(text.split())}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="afdcd-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(without_tokens("".join(traceback.format_exception(error))))
    except OSError:  # no room even for this
        return line
    return f"{line} (traceback: {file.name})"


# The process: its log messages on the terminal, and how it leaves the others of a launcher


def quieten() -> None:
    """Our own messages from the main process only, above the progress bar; of others only what tells of trouble."""
    main_process = os.environ.get("RANK", "0") == "0"
    handler = BesideBars(sys.stderr)
    handler.setFormatter(Plain())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("afdcd_hf").setLevel(logging.INFO if main_process else logging.ERROR)
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # it warns of classifiers that we do without


class BesideBars(logging.StreamHandler):
    """Writes a message above a progress bar, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # not imported: no bar to care for
        with bars.external_write_mode(file=self.stream) if bars else nullcontext():
            super().emit(record)


class Plain(logging.Formatter):
    """News as they are, trouble with its level before it; of others' messages also where they come from."""

    def format(self, record: logging.LogRecord) -> str:
        source = "" if record.name.split(".")[0] == "afdcd_hf" else f"{record.name} "
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return without_tokens(source + level + super().format(record))


def leave_process_group() -> None:
    """Part from the other processes, where there are any; call it on every rank, when all work is done.

    Without it NCCL warns on leaving, and a finished run with gloo can end with SIGABRT: in Python < 3.14 one of its
    threads may ask for the interpreter while that is shutting down. Those that DDP holds for ever get a moment.
    """
    distributed = sys.modules.get("torch.distributed")  # if nobody imported it, there is no group
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    gc.collect()  # a trainer, which refers to itself, holds its groups
    distributed.destroy_process_group()
    time.sleep(0.1)
