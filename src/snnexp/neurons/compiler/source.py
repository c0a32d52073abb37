"""A graph of symbols as lines of Python, and generated modules on disk."""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from keyword import iskeyword
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import ModuleType

from snnexp.folders import user_cache
from snnexp.neurons.compiler.plan import Body
from snnexp.neurons.compiler.symbols import Symbol, in_order

LONGEST = 60  # characters of an expression, beyond which its parts get names
_INFIX = {"add": ("+", 2), "sub": ("-", 2), "mul": ("*", 3), "div": ("/", 3)}
_COMPARISON = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_ATOM = 5
_FRAMES = """abs active add_taps add_taps_alone add_up ahead at bands batch before beside BLOCK block block_at chunk
column columns count divide DOUBLE end exp_of_negative find_place free group hand_back height index inner inside
keep_taps keep_total laid last marked math max min near norm_bias norm_mean norm_scale normal now number one pairs
part past pick picked place places pool pool_needed pooled pooled_needed push pushed range room routed row sample
shift size span spikes SPK_CONSTANT spread start steps stop sum_up sums take_apart tap_entries tap_first tap_shape
tap_sums time times tl top total triton unpool unpooled unpooled_needed UNROLL weight wide wider width with_margins
written x_flat zero"""
RESERVED = frozenset(_FRAMES.split())
"""Variables of the engines' frames beside those of the equation, and what they call."""
OF_STATES = ("row", "rows", "column", "columns", "whole", "own", "room", "scratch", "next", "out", "ahead")
OF_VALUES = ("values", "block", "spread", "period")
"""How frames go on after the name of a state, or of a value, to call what they have of it."""
_THEIRS = re.compile(rf"\w|\w+_|v\d+|(new|c|surrogate|SURROGATE)_\w+|\w+_({'|'.join((*OF_STATES, *OF_VALUES))})")
Call = Callable[..., str]  # the operands' texts -> the text of a call or a bracketed expression


class Writer:
    """Lines of code; `with block(head)` indents what is written meanwhile."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0

    def __call__(self, *lines: str) -> None:
        self.lines += ["    " * self.depth + line for line in lines]

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Write the head, and what follows one level deeper."""
        self(head)
        self.depth += 1
        yield
        self.depth -= 1


class StepWriter(Writer):
    """What the frames of all engines share: which values, columns, scalars and numbers a step needs.

    Args:
        body: what the step writes.
        more: what is read besides.
    """

    def __init__(self, body: Body, more: Iterable[Symbol] = ()) -> None:
        super().__init__()
        self.step = in_order([*body.rows.values(), *body.columns.values()])
        read = [*self.step, *more]
        self.values = sorted({s.name for s in read if s.op == "value"})
        self.columns = list(dict.fromkeys([*body.columns, *(s.name for s in read if s.op == "column")]))
        self.scalars = sorted({s.name for s in self.step if s.op == "scalar"})
        self.timed = any(s.op in ("step", "flag") for s in read)
        self.numbers: dict[float, str] = {0.0: "zero", 1.0: "one"}
        self.called = {symbol: f"new_{name}" for name, symbol in body.columns.items()}

    def number(self, value: float) -> str:
        """A number's name: a literal would have another precision than the step."""
        return self.numbers.setdefault(value, f"c_{len(self.numbers) - 2}")


def body_lines(
    outputs: Mapping[str, Symbol],
    names: Mapping[Symbol, str],
    calls: Mapping[str, Call],
    number: Callable[[float], str],
) -> list[str]:
    """Return statements that assign each output's symbol to its target, in the order of `outputs`.

    Args:
        outputs: target -> symbol.
        names: what symbols are called if they get a name of their own; leaves have their own.
        calls: how the engine writes operations that are not infix, or that it writes in another way.
        number: how it writes a number.
    """
    twice = ("max", "min")  # compare their operands, and take one
    uses = Counter(id(a) for s in in_order(outputs.values()) for a in (s.args * 2 if s.op in twice else s.args))
    uses.update(id(s) for s in outputs.values())
    texts: dict[int, tuple[str, int]] = {}
    lines: list[str] = []
    for symbol in in_order(outputs.values()):
        if symbol.op == "const":
            texts[id(symbol)] = number(symbol.name), _ATOM
        elif not symbol.args:
            texts[id(symbol)] = local(symbol), _ATOM
        else:
            text, strength = _expression(symbol, [texts[id(a)] for a in symbol.args], calls)
            if uses[id(symbol)] > 1 or len(text) > LONGEST:
                name = names.get(symbol, f"v{len(lines)}")
                lines.append(f"{name} = {text}")
                text, strength = name, _ATOM
            texts[id(symbol)] = text, strength
    return lines + [f"{target} = {texts[id(symbol)][0]}" for target, symbol in outputs.items()]


def local(leaf: Symbol) -> str:
    """The variable for a leaf: its name, unless frames or `body_lines` use that for something else."""
    name: str = leaf.name
    if leaf.op in ("step", "flag", "scalar") or name == "x":
        return name
    return f"{name}_" if _THEIRS.fullmatch(name) or name in RESERVED or iskeyword(name) else name


def _expression(symbol: Symbol, args: list[tuple[str, int]], calls: Mapping[str, Call]) -> tuple[str, int]:
    op = symbol.op

    def operand(index: int, least: int) -> str:
        text, strength = args[index]
        return text if strength >= least else f"({text})"

    if op in calls:
        return calls[op](*(text for text, _ in args)), _ATOM
    if op in _INFIX:
        sign, strength = _INFIX[op]
        return f"{operand(0, strength)} {sign} {operand(1, strength + 1)}", strength
    if op in _COMPARISON:
        return f"{operand(0, 2)} {_COMPARISON[op]} {operand(1, 2)}", 1
    assert op == "neg", op
    return f"-{operand(0, _ATOM)}", 4


@cache
def file_hash(path: str) -> str:
    """A short hash of a file, for the head of what is generated from it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


@cache
def load(source: str, on_disk: bool = True) -> ModuleType:
    """Return generated source as a module, from a file named after its hash, so that compilers can cache beside it.

    Files are written once, whole, and with the same time stamp by whoever writes them: processes may do so at once.
    Where no folder can be written, or with on_disk=False, the module lives in memory, and nothing of it is cached.
    """
    name = f"snnexp_kernel_{hashlib.sha256(source.encode()).hexdigest()[:24]}"
    folders = _folders() if on_disk else []
    path = next((path for folder in folders if (path := _written(folder / f"{name}.py", source))), None)
    if path is None:
        module = ModuleType(name)
        module.__file__ = f"<{name}>"
        linecache.cache[module.__file__] = (len(source), None, source.splitlines(keepends=True), module.__file__)
        exec(compile(source, module.__file__, "exec"), module.__dict__)
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _folders() -> list[Path]:
    """Where generated modules go: the user's cache, else beside this file."""
    here = Path(__file__).parent / "__pycache__" / "kernels"
    try:
        return [user_cache() / "kernels", here]
    except OSError:  # no home
        return [here]


def _written(path: Path, source: str) -> Path | None:
    with suppress(OSError):
        if path.is_file() and path.read_text() == source:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            file.write(source)
        os.chmod(file.name, 0o644)
        os.utime(file.name, (1e9, 1e9))  # numba's cache goes by it: two writers must not invalidate each other
        os.replace(file.name, path)
        return path
    return None
