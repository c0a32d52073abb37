"""What the terminal can show: ASCII terminals get ASCII, and no sign of a name or a message ends the command."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping

# What we print ourselves, and rich's lines; any other sign becomes its escape (\xe9), which can be told from others.
_PAIRS = "±:+- ×:x …:... →:-> ←:<- ≥:>= ≤:<= ≈:~ ·:. •:* θ:theta β:beta α:alpha τ:tau µ:u σ:sigma –:- —:- −:- ‘:' ’:'"
PLAIN = dict(pair.split(":", 1) for pair in _PAIRS.split())
PLAIN |= {"“": '"', "”": '"', "\u00a0": " "}
PLAIN |= dict.fromkeys("─━═╌╍┄┅┈┉╸╺╴╶", "-") | dict.fromkeys("│┃║╎╏┆┇┊┋╷╵╹╻", "|")
PLAIN |= dict.fromkeys("┌┍┎┏┐┑┒┓└┕┖┗┘┙┚┛├┝┞┟┠┡┢┣┤┥┦┧┨┩┪┫┬┯┳┴┷┻┼┿╇╈╋╭╮╯╰╒╓╔╕╖╗╘╙╚╛╜╝╞╟╠╡╢╣╤╥╦╧╨╩╪╫╬", "+")
PLAIN |= dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True))
HANDLER = "snnexp.plain"


def prepare_terminal(environment: Mapping[str, str] = os.environ) -> None:
    """Let both streams write what they can, and spell out what they cannot."""
    codecs.register_error(HANDLER, _spell_out)
    ascii_only = says_ascii(environment)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # only the errors change where Python's choice of encoding stands
            stream.reconfigure(encoding="ascii" if ascii_only else None, errors=HANDLER)


def width() -> int:
    """Columns of the terminal; $COLUMNS wins, and 80 where there is neither."""
    return max(shutil.get_terminal_size((80, 24)).columns, 20)


def wrapped(text: str, columns: int | None = None, hang: int = 2) -> str:
    """`text` in lines that fit, broken between words only; a longer word (an address, a path) stays whole.

    Args:
        columns: to fit into; by default the terminal's.
        hang: spaces before the lines that go on, beside those that the line began with.
    """
    lines = []
    for line in text.splitlines():
        start = line[: len(line) - len(line.lstrip())]
        if " " not in line.strip():
            lines.append(line)  # textwrap would take the space before a long word away
            continue
        lines += textwrap.wrap(
            line,
            columns or width(),
            subsequent_indent=start + " " * hang,
            break_long_words=False,
            break_on_hyphens=False,
            expand_tabs=False,
        )
    return "\n".join(lines)


def says_ascii(environment: Mapping[str, str]) -> bool:
    """Whether the user asked for the C locale, which Python takes for UTF-8 nevertheless (PEP 538, PEP 540)."""
    if environment.get("PYTHONIOENCODING") or environment.get("PYTHONUTF8"):
        return False  # Python's own settings are more precise
    # LC_CTYPE does not count: Python sets it to C.UTF-8 itself when LANG is C
    return (environment.get("LC_ALL") or environment.get("LANG") or "").upper() in ("C", "POSIX")


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(PLAIN.get(s) or s.encode("ascii", "backslashreplace").decode() for s in signs), error.end
