"""What can go wrong in the command: its exit codes, and errors in one line."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import typer

from made_flows.training.history import TrainingError


class Code(IntEnum):
    """Exit codes: 0 is success, 1 an error of no kind below, 2 a wrong option."""

    FAILED = 1
    OPTION = 2
    DATA = 3
    MODEL = 4
    OUTPUT = 5
    INTERRUPTED = 130


class CommandError(Exception):
    """An error that the command reports in a line, with its exit code."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def errors_of(code: Code, where: str) -> Iterator[None]:
    """Report what the library or a file refuses, with a code and the file's name."""
    try:
        yield
    except (TypeError, ValueError, OSError) as error:
        message = str(error)
        if "invalid UTF8" in message:  # Arrow's words, behind a whole chain of them
            row = re.search(r"Row #(\d+)", message)
            at = f" in row {int(row[1]) - 1}" if row else ""
            message = f"Expected {where} to be text in UTF-8; got other bytes{at}"
        if not message.startswith("Expected"):  # not one of ours
            message = f"Expected {where} to be read; got: {message}"
        at = "" if where in message else f" ({where})"
        raise CommandError(code, f"{message}{at}") from error


@contextmanager
def reporting() -> Iterator[None]:
    """Turn errors and warnings into lines of standard error, and errors into exit codes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = lambda message, *_: say(f"warning: {message}")
            yield
    except (CommandError, TrainingError) as error:
        say(str(error))
        raise typer.Exit(getattr(error, "code", Code.FAILED)) from error
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        raise typer.Exit(Code.INTERRUPTED) from None
    except BrokenPipeError:  # whoever reads our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: Any) -> None:
    """Write a line to standard error."""
    typer.echo(f"made-flows: {message}", err=True)
