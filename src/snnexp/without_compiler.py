"""torch's compiler, which its optimizers import to tell it where a graph ends, comes when somebody asks it for more.

`torch._dynamo` takes nearly as long to import as torch itself, and every optimizer's first step imports it, compiled or
not (torch 2.13, `torch/optim/optimizer.py`, `torch/_compile.py`). Where nothing is compiled these two want nothing of
it: a graph's end is no event, and a function that should not be compiled is just called. The command, whose process is
its own, lets a stand-in do that; whatever else is asked of it brings the real module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


def put_off() -> None:
    """Let the module's place be taken by a stand-in, unless it is there already."""
    sys.modules.setdefault(NAME, _StandIn(NAME))


class _StandIn(ModuleType):
    """What the module is asked for besides brings the module itself, also if it is a package to import from."""

    @staticmethod
    def graph_break(*args: Any, **kwargs: Any) -> None:
        """Nothing is compiled, so there is no graph; later it is the module's."""
        if not isinstance(sys.modules.get(NAME), _StandIn):
            _real().graph_break(*args, **kwargs)

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, *, wrapping: bool = True, **kwargs: Any) -> Any:
        """As torch/_compile.py asks it (`wrapping=False`), for a function of torch's own; other calls are the module's.

        torch keeps what this returns for good, so that goes by what is there when it is called.
        """
        if fn is None or wrapping or kwargs:
            return _real().disable(fn, recursive, wrapping=wrapping, **kwargs)
        disabled: list[Callable[..., Any]] = []

        def call(*given: Any, **named: Any) -> Any:
            if isinstance(sys.modules.get(NAME), _StandIn):
                return fn(*given, **named)
            if not disabled:
                disabled.append(_real().disable(fn, recursive, wrapping=False))
            return disabled[0](*given, **named)

        return call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # that of somebody who looks through all modules
            raise AttributeError(name)
        return getattr(_real(), name)


def _real() -> Any:
    """The module itself, imported now if it is not there."""
    if isinstance(sys.modules.get(NAME), _StandIn):
        del sys.modules[NAME]
    return importlib.import_module(NAME)
