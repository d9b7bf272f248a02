"""Failures of a forward pass, told in one line with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def explained(size: tuple[int, int], batch_size: int, compiled: bool) -> Iterator[None]:
    """Turn what memory, the network's own limits or a compiler say into a ValueError that names the input.

    Args:
        size: (height, width) of the input.
        batch_size: Images of the input.
        compiled: Whether `torch.compile` was asked for.

    Raises:
        ValueError: If the input does not fit into memory, the network cannot take it, or it cannot be compiled.
    """
    shown = f"{batch_size} x 3 x {size[0]} x {size[1]}"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"Input of {shown} does not fit into the GPU's memory; take fewer or smaller images."
        ) from error
    except ValueError as error:  # the network's own check
        raise ValueError(f"The network cannot take an input of {shown}: {error}") from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise ValueError(f"Input of {shown} does not fit into memory; take fewer or smaller images.") from error
        tried = "torch.compile, or the pass after it, failed" if compiled else "The forward pass failed"
        advice = "measure without compiling, or another size" if compiled else "take another size"
        raise ValueError(f"{tried} on an input of {shown}; {advice}. {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The first line that says something; the rest of PyTorch's messages are stack frames of C++."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
