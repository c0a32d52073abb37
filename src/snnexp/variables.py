"""The environment variables that snnexp reads itself, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from snnexp.errors import ConfigError

SWITCHES = ("SNNEXP_AHEAD", "SNNEXP_ALLOC")  # `ahead/`, `allocator.py`


def threads(environment: Mapping[str, str] = os.environ) -> int | None:
    """SNNEXP_THREADS, torch's number of threads; None if it is not set.

    Raises: ConfigError if it is no number from 1 on.
    """
    text = environment.get("SNNEXP_THREADS")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65536):
        raise ConfigError(
            f"SNNEXP_THREADS={text}: must be a number of threads, 1 or more. To let torch choose: unset SNNEXP_THREADS."
        )
    return int(text)


def switched_on(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the switch `name` is on: it is, unless it is 0.

    Raises: ConfigError if it is neither 0 nor 1, nor empty.
    """
    text = environment.get(name, "")
    if text not in ("", "0", "1"):
        raise ConfigError(f"{name}={text}: must be 0 (off) or 1 (on, as when it is not set).")
    return text != "0"


def check_variables(environment: MutableMapping[str, str] = os.environ) -> None:
    """Refuse values that cannot be meant; an empty SNNEXP_DATA counts as unset.

    Raises: ConfigError that names the variable.
    """
    threads(environment)
    for name in SWITCHES:
        switched_on(name, environment)
    data = environment.get("SNNEXP_DATA")
    if data == "":
        del environment["SNNEXP_DATA"]
    elif data is not None and Path(data).expanduser().exists() and not Path(data).expanduser().is_dir():
        raise ConfigError(
            f"SNNEXP_DATA={data}: is a file. It must be the folder that holds the data sets' own folders."
        )
