"""Residual blocks of the notation: shapes and their rules. Pure Python, like the rest of the notation.

    +(body)              what the body makes of the block's input, plus the input
    +(body|shortcut)     plus what the shortcut makes of it: a 1x1 convolution where the shapes differ

    SEW ResNet (arXiv:2102.04159, ADD)     +(c64k3-BN-SN-c64k3-BN-SN)        spikes are added: 0, 1, 2, ...
    Spiking ResNet                         +(c64k3-BN-SN-c64k3-BN)-SN        currents are added, then the neurons

In the list of layers a block is its body and shortcut one after the other, between three marks: `fork` keeps the input,
`shortcut` keeps what the body made and goes on from the input, `join` adds.
"""

from __future__ import annotations

from snnexp.errors import ConfigError
from snnexp.models.tokens import BRANCHES, Token, spec_error

__all__ = ["BRANCHES", "Blocks", "inputs_behind"]

Shape = tuple[int, ...]


class Blocks:
    """The blocks that are open while the layers of `spec` are planned."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.open: list[tuple[Shape, Shape | None, str]] = []  # input, what the body made, the body's last token

    def shape_after(self, token: Token, shape: Shape, before: str) -> Shape:
        """The shape behind one of the marks; `shape` and `before`: what comes in, and the kind of layer that made it.

        Raises: ConfigError if what would be added has two shapes; the message has a shortcut that fits.
        """
        if token.kind == "fork":
            self.open.append((shape, None, ""))
            return shape
        start, body, ended_in = self.open.pop()
        if token.kind == "shortcut":
            self.open.append((start, shape, before))
            return start
        other, shape = (start, shape) if body is None else (shape, body)
        if other != shape:
            raise self._mismatch(token, start, other, shape, before if body is None else ended_in, body is None)
        return shape

    def _mismatch(
        self, token: Token, start: Shape, other: Shape, made: Shape, ended_in: str, identity: bool
    ) -> ConfigError:
        what = "its input" if identity else "its shortcut"
        message = f"the body of this block makes {_size(made)}, and {what} is {_size(other)}: they cannot be added."
        fitting = _projection(start, made)
        if fitting is not None:
            message += f" A shortcut that fits: |{fitting}-BN{'-SN' if ended_in == 'spiking' else ''}"
            message += " before the closing bracket." if identity else " in its place."
        return spec_error(self.spec, token.start, token.end, message)


def inputs_behind(kind: str, analog: bool, binary: bool, kept: list[tuple[bool, bool]]) -> tuple[bool, bool]:
    """Whether no spikes came before, and whether what comes in is 0 or 1, behind a mark.

    Args: the mark; the two before it; `kept`: the two of blocks that are open, which this keeps.
    """
    if kind == "fork":
        kept.append((analog, binary))
        return analog, binary
    other = kept.pop()
    if kind == "shortcut":  # goes on from what came into the block
        kept.append((analog, binary))
        return other
    return analog and other[0], False  # sums of spikes are no spikes


def _projection(start: Shape, made: Shape) -> str | None:
    """The layer with weights that takes one shape to the other: a 1x1 convolution with a stride, or an FC."""
    if len(made) == 1:
        return f"FC{made[0]}"
    if len(start) == 3:
        for stride in range(1, start[1] + 1):
            if all((n - 1) // stride + 1 == m for n, m in zip(start[1:], made[1:], strict=True)):
                return f"c{made[0]}k1" + (f"s{stride}" if stride > 1 else "")
    return None


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape))
