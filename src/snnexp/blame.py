"""Errors of a user's own code, said in one message: the key that names the code, its file and line."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from snnexp.errors import ConfigError, SnnexpError


@contextmanager
def blamed(key: str, word: str, module: str) -> Iterator[None]:
    """Let an error of a user's code end in one message with its key, file and line.

    Args:
        module: name of the Python module that the code lies in.
    Raises: ConfigError.
    """
    try:
        yield
    except (SnnexpError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's: what to lower is said elsewhere
            raise
        theirs = getattr(sys.modules.get(module), "__file__", None)
        raise ConfigError(f"{key}={word}: {line_of(error, lambda file: file == theirs)}{said(error)}") from error


def said(error: BaseException) -> str:
    """An error's kind and text."""
    return f"{type(error).__name__}: {error}"


def line_of(error: BaseException, is_theirs: Any) -> str:
    """`FILE, line N: `text`: ` of the last line on the way that is the user's, or nothing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if is_theirs(file) and "importlib" not in file:
            found = place(file, number)
    return found


def place(file: str, line: int) -> str:
    """`FILE, line N: `text`: `."""
    return f"{file}, line {line}: `{linecache.getline(file, line).strip()}`: "
