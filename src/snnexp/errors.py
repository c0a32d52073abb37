"""The errors that users are meant to see: one clear message, no traceback, a fixed exit code (DESIGN section 6)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SnnexpError(Exception):
    """Base of all errors with a message made for the user; `exit_code` is what the command returns."""

    exit_code = 1


class ConfigError(SnnexpError):
    """The configuration is wrong; the message names the key, the value and what would be right."""

    exit_code = 2


class DataError(SnnexpError):
    """Data is missing, damaged or not what it claims to be; the message names the file and the way out."""

    exit_code = 2


class TrackingError(SnnexpError):
    """The tracking store cannot be used; the message names the address and the way out."""

    exit_code = 2


class NoSpaceError(SnnexpError):
    """The disk is full; the message names the file. Nothing was wrong with the command, so the code is 1."""


class TrainingError(SnnexpError):
    """Training cannot go on (a non-finite loss, say); the message names the layer and the epoch."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return " Did you mean X?" for the closest of `valid`, or an empty string if none is close."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def unknown_choice(key: str, value: object, valid: Iterable[str]) -> str:
    """One message for a wrong choice: key, value, nearest valid word and all valid words."""
    options = list(valid)
    if value == "gpu" and "cuda" in options:
        return f"{key}=gpu: no such option. Did you mean cuda? Valid: {', '.join(options)}."
    return f"{key}={value}: no such option.{did_you_mean(str(value), options)} Valid: {', '.join(options)}."
