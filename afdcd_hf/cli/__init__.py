"""The `afdcd` command. Heavy imports are deferred until a command needs them, which keeps `--help` fast."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
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
  1    `afdcd verify`: the score on the card was not reproduced; `afdcd release`: a model was not published
  2    an error in the command or its files, or a failure; one line on standard error explains it
  130  interrupted (Ctrl-C), or 143 after SIGTERM; training runs save a checkpoint first
Set AFDCD_TRACEBACK=1 in the environment to see the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; on any error, print one line to standard error and return exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    name, hint = "afdcd", ""
    if argv is None:  # the process is ours: remove temporary files as after Ctrl-C
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        parser, commands = _parser()
        if not words or words[0].startswith("-"):
            return _run_top_level(parser, words)
        command, words = _command(commands.choices, words)
        name, hint = command.prog, command.on_interruption
        configure_logging()
        options = command.options(words)  # exits here for --help, raises for `afdcd chart` without a kind
        status = command.run(**options) if command.run else None
        leave_process_group()
        return status or 0
    except KeyboardInterrupt as interruption:  # including TrainingInterrupted, raised after a checkpoint was saved
        message = f"{str(interruption) or 'interrupted'}{hint and '; '}{hint}"
        print(f"\n{name}: {without_tokens(message)}", file=sys.stderr)
        return getattr(interruption, "exit_status", 130)
    except BrokenPipeError:  # the reader closed the pipe, as in `afdcd datasets voc | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would report an error on exit
        return 141
    except Exception as error:
        if os.environ.get("AFDCD_TRACEBACK"):
            raise
        print(f"{name}: {_error_line(error)}", file=sys.stderr)
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


def _run_top_level(parser: Command, words: Sequence[str]) -> int:
    """Handle options without a command: help, version and tab completion."""
    shell = parser.options(words)["print_completion"]
    if shell:
        import shtab

        print(shtab.complete(parser, shell))
    else:
        parser.print_help()
    return 0


def _command(known: dict[str, Command], words: list[str]) -> tuple[Command, list[str]]:
    """Return the parser of the command named by the first words, and the remaining words."""
    what = "command"
    if words[0] == "chart" and len(words) > 1 and not words[1].startswith("-"):
        known, words, what = known["chart"].get_default("kinds").choices, words[1:], "kind of chart"
    if words[0] not in known:
        hint = close_names(words[0], known) or f" Known: {', '.join(known)}."
        raise ValueError(f"unknown {what} {words[0]!r}.{hint}")
    return known[words[0]], words[1:]


def _error_line(error: Exception) -> str:
    """Format an error as one line; for an unexpected one, include its type and a file with the traceback."""
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


# The process: logging to the terminal, and leaving the process group of a launcher


def configure_logging() -> None:
    """Log above the progress bar: our own messages (on other ranks only errors), and other libraries' warnings."""
    main_process = os.environ.get("RANK", "0") == "0"
    handler = TqdmHandler(sys.stderr)
    handler.setFormatter(MessageFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("afdcd_hf").setLevel(logging.INFO if main_process else logging.ERROR)
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # it warns of classifiers that we drop


class TqdmHandler(logging.StreamHandler):
    """Writes a message above a progress bar, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # if tqdm is not imported, there is no bar
        with bars.external_write_mode(file=self.stream) if bars else nullcontext():
            super().emit(record)


class MessageFormatter(logging.Formatter):
    """Info messages bare, warnings and errors with their level; other libraries' messages also with their logger."""

    def format(self, record: logging.LogRecord) -> str:
        source = "" if record.name.split(".")[0] == "afdcd_hf" else f"{record.name} "
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return without_tokens(source + level + super().format(record))


def leave_process_group() -> None:
    """Leave the process group, if there is one. Call on every rank once all work is done.

    Otherwise NCCL warns on exit, and a finished run with gloo can end with SIGABRT: in Python < 3.14, one of gloo's
    threads may request the interpreter during shutdown.
    """
    distributed = sys.modules.get("torch.distributed")  # if it was never imported, there is no group
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    gc.collect()  # trainers are reference cycles and hold their groups until collected
    distributed.destroy_process_group()
    time.sleep(0.1)  # DDP holds some of gloo's threads forever: give them a moment
