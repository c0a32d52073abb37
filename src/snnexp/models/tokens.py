"""The notation of networks, first half: text -> tokens (docs/models.md has the table; `spec.py` makes layers of them).

    c128k3-BN-SN-MP2-(c128k3-BN-SN-MP2)x2-DP0.5-FC2048-SN-DP0.5-FC100-SN-VOTE10

Pure Python: configuration checks and `--help` use it without torch. Every error names the token, points at it with a
caret and says what would be right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snnexp.errors import ConfigError


@dataclass(frozen=True)
class TokenKind:
    """One row of the table of tokens: how it is written, what it is, and its pattern."""

    word: str  # the letters it starts with
    usage: str
    meaning: str
    kind: str
    pattern: re.Pattern[str]

    @property
    def short(self) -> str:
        """The meaning in few words, for a did-you-mean."""
        return re.split(r"[;,:]| whose", self.meaning)[0]


def _kind(word: str, usage: str, meaning: str, kind: str, pattern: str) -> TokenKind:
    return TokenKind(word, usage, meaning, kind, re.compile(pattern))


_CONV = r"c(?P<out>\d+)k(?P<k>\d+)(?:s(?P<s>\d+))?(?:p(?P<p>\d+))?"
_FC = r"FC(?P<out>\d+)?"
_RFC = r"RFC(?P<out>\d+)(?:DL(?P<max>\d+))?"
_POOL = r"(?:k?(?P<k>\d+)(?:s(?P<s>\d+))?)"
_SHARE = r"(?P<rate>0?\.\d+|0|1\.0|1)?"

TOKENS: tuple[TokenKind, ...] = (
    _kind("c", "c<out>k<size>[s<stride>][p<pad>]", "convolution; pad = size // 2 for odd sizes, else 0", "conv", _CONV),
    _kind("FC", "FC[<out>]", "fully connected; without a number one neuron per class and vote", "linear", _FC),
    _kind("RFC", "RFC<out>", "FC whose SN also feeds back by learned weights; RFC64DL8: delayed", "recurrent", _RFC),
    _kind("DL", "DL<n>", "learned delays of 0 to n steps, one per channel or input", "delay", r"DL(?P<max>\d+)"),
    _kind("BN", "BN", "batch normalisation", "batch_norm", r"BN"),
    _kind("LN", "LN", "layer normalisation", "layer_norm", r"LN"),
    _kind("NN", "NN", "NeuNorm, after the SN of a convolution", "neunorm", r"NN"),
    _kind("SN", "SN", "spiking neurons: the chosen `neuron`", "spiking", r"SN"),
    _kind("MP", "MP<size>", "max pooling", "max_pool", r"MP" + _POOL),
    _kind("AP", "AP<size>", "average pooling", "avg_pool", r"AP" + _POOL),
    _kind("DP", "DP[<p>]", "dropout, one mask for all time steps; p = 0.5", "dropout", r"DP" + _SHARE),
    _kind("DPT", "DPT[<p>]", "dropout, the mask redrawn at each time step", "dropout_step", r"DPT" + _SHARE),
    _kind("DPM", "DPM[<p>]", "moderate dropout, of rarely firing inputs above all", "dropout_rate", r"DPM" + _SHARE),
    _kind("FLAT", "FLAT", "flatten; implied before the first FC", "flatten", r"FLAT"),
    _kind("VOTE", "VOTE<n>", "mean over each n neighbouring output neurons", "vote", r"VOTE(?P<n>\d+)"),
)

BRANCHES = frozenset({"fork", "shortcut", "join"})  # marks of a residual block: where it begins, parts and ends


@dataclass(frozen=True)
class Token:
    """One token as written: `args` are its numbers (out, k, s, p, rate, n), `start:end` its place in the spec."""

    text: str
    kind: str
    args: Mapping[str, float]
    start: int
    end: int


def token_table() -> str:
    """The table of tokens, one line each."""
    return "\n".join(f"  {token.usage:<34}{token.meaning}" for token in TOKENS)


_GROUPS = "\n".join(
    f"  {usage:<34}{meaning}"
    for usage, meaning in (
        ("(...)x<n>", "repeat n times"),
        ("+(body) or +(body|shortcut)", "residual block: what both make, added"),
    )
)


def spec_error(spec: str, start: int, end: int, message: str, *, table: bool = False) -> ConfigError:
    """`message`, the spec with a caret line under spec[start:end], and the table of tokens if asked for."""
    text = f"model.spec: {message}\n  {spec}\n  {' ' * start}{'^' * max(end - start, 1)}"
    return ConfigError(text + (f"\nTokens:\n{token_table()}\n{_GROUPS}" if table else ""))


# --- text to tokens -----------------------------------------------------------------------------------------------


def parse(spec: str) -> list[Token]:
    """Read `spec` and expand its repetitions; "(...)x<n>" and PLIF's "{...}*<n>" are the same.

    Raises: ConfigError at the first wrong token, bracket or number.
    """
    tokens, end = _sequence(spec, 0, None)
    if end != len(spec) and spec[end] == "|":
        raise spec_error(spec, end, end + 1, "a shortcut belongs into a residual block: +(body|shortcut).")
    if end != len(spec):  # only a closing bracket stops the outermost sequence early
        raise spec_error(spec, end, end + 1, f"closing {spec[end]} without an opening one.")
    return tokens


def _sequence(spec: str, at: int, closing: str | None) -> tuple[list[Token], int]:
    """Items separated by "-" from `at` to a sign of `closing` or the end; returns the tokens and where it stopped."""
    tokens: list[Token] = []
    while True:
        while at < len(spec) and spec[at].isspace():
            at += 1
        if at < len(spec) and spec[at] in "({":
            group, at = _group(spec, at)
            tokens += group
        elif spec.startswith("+(", at):
            block, at = _residual(spec, at)
            tokens += block
        else:
            found = re.compile(r"[^-(){}|\s]*").match(spec, at)
            assert found is not None  # the pattern also matches nothing
            if not found.group():
                raise spec_error(
                    spec, at, at + 1, "a token is missing here. Tokens are separated by single dashes.", table=True
                )
            tokens.append(_token(spec, at, found.end()))
            at = found.end()
        while at < len(spec) and spec[at].isspace():
            at += 1
        if at == len(spec) or spec[at] in ")}|":
            if closing and (at == len(spec) or spec[at] not in closing):
                raise spec_error(spec, at, at + 1, f"expected {closing[0]} here.")
            return tokens, at
        if spec[at] != "-":
            raise spec_error(spec, at, at + 1, "expected - between two tokens.")
        at += 1


def _group(spec: str, at: int) -> tuple[list[Token], int]:
    """A bracketed group with its repetition, starting at the bracket."""
    body, end = _sequence(spec, at + 1, ")" if spec[at] == "(" else "}")
    times = re.compile(r"\s*[x*]\s*(\d+)").match(spec, end + 1)
    if times is None or int(times.group(1)) < 1:
        raise spec_error(spec, end, end + 1, "a group needs its repetition after it: (...)x2.")
    if int(times.group(1)) * len(body) > 10_000:
        raise spec_error(spec, end + 1, times.end(), "more than 10,000 layers.")
    return body * int(times.group(1)), times.end()


def _residual(spec: str, at: int) -> tuple[list[Token], int]:
    """A residual block with its marks, starting at the plus; a repetition may follow."""
    body, end = _sequence(spec, at + 2, ")|")
    shortcut: list[Token] = []
    if spec[end] == "|":
        shortcut, end = _sequence(spec, end + 1, ")")
        shortcut = [Token("|", "shortcut", {}, at, end + 1), *shortcut]
    marks = Token("+(", "fork", {}, at, end + 1), Token("+(...)", "join", {}, at, end + 1)
    block = [marks[0], *body, *shortcut, marks[1]]
    times = re.compile(r"\s*[x*]\s*(\d+)").match(spec, end + 1)
    if times is None:
        return block, end + 1
    if not 1 <= int(times.group(1)) * len(block) <= 10_000:
        raise spec_error(spec, end + 1, times.end(), "a block is repeated once at least, and 10,000 layers at most.")
    return block * int(times.group(1)), times.end()


def _token(spec: str, start: int, end: int) -> Token:
    text = spec[start:end]
    for kind in TOKENS:
        found = kind.pattern.fullmatch(text)
        if found:
            args = {key: float(value) for key, value in found.groupdict().items() if value is not None}
            for key in ("out", "k", "s", "n", "max"):
                if args.get(key, 1) < 1:
                    raise spec_error(spec, start, end, f"{text}: numbers start at 1.")
            if args.get("rate", 0) >= 1:
                raise spec_error(spec, start, end, f"{text} would drop everything: the share dropped is below 1.")
            return Token(text, kind.kind, args, start, end)
    raise spec_error(spec, start, end, f"unknown token {text}.{_did_you_mean(text)}", table=True)


def _did_you_mean(text: str) -> str:
    """The nearest legal token: first other ways that papers write it, then the closest spelling."""
    guesses: list[str] = []
    for pattern, rewrite in _OTHER_NOTATIONS:
        found = re.fullmatch(pattern, text, re.IGNORECASE)
        if found:
            guesses.append(rewrite(found))
    digits = "".join(re.findall(r"[\d.]+", text)[:1])
    spellings = [kind.word + (digits if "<" in kind.usage else "") for kind in TOKENS if kind.word != "c"]
    upper = [word for word in spellings if word == text.upper()]
    guesses += upper or difflib.get_close_matches(text.upper(), spellings, n=1, cutoff=0.5)
    for guess in guesses:
        for kind in TOKENS:
            if kind.pattern.fullmatch(guess):
                return f" Did you mean {guess} ({kind.short})?"
    return ""


_OTHER_NOTATIONS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"c(?:onv)?(\d+)k(\d+)(?:s\d+)?(?:p\d+)?", lambda m: f"c{m[1]}k{m[2]}"),
    (r"(\d+)c(\d+)", lambda m: f"c{m[1]}k{m[2]}"),  # Wu et al. 2019: 128C3
    (r"conv(\d+)(?:x\d+)?", lambda m: f"c{m[1]}k3"),
    (r"c(\d+)", lambda m: f"c{m[1]}k3"),
    (r"(\d+)fc", lambda m: f"FC{m[1]}"),
    (r"(?:linear|dense|fc|\d)(\d+)", lambda m: f"FC{m[0].lstrip('lineardsfcLINEARDSFC')}"),
    (r"(?:plif|lif|if|clif|leaky|spike|rouser|ttfs)", lambda m: "SN"),
    (r"p(?:ool)?(\d+)", lambda m: f"MP{m[1]}"),
    (r"(?:flatten|f)", lambda m: "FLAT"),
    (r"vot(?:e|ing)\D*(\d*)", lambda m: f"VOTE{m[1] or 10}"),
    (r"(?:dropout|drop|d)(0?\.\d+)?", lambda m: f"DP{m[1] or ''}"),
)


def takes_events(spec: str, convolutions: bool) -> bool:
    """Whether lists of events can drive the first layer without a dense input: fully connected, or a convolution.

    convolutions: whether they follow events at all.
    """
    if parse(spec)[0].kind == "conv":
        return convolutions
    first = next((token for token in parse(spec) if token.kind not in ("flatten", "delay")), None)
    return first is not None and first.kind in ("linear", "recurrent")
