"""torch's compiler, which its optimizers import to tell it where a graph ends, comes when somebody asks it for more.

`torch._dynamo` takes nearly as long to import as torch itself, and every optimizer's first step imports it, compiled or
not (torch 2.13, `torch/optim/optimizer.py`). Where nothing is compiled it has two things to do: nothing at the end of a
graph, and to leave alone a function that it should not compile. Until it is needed a stand-in does these.
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
    def graph_break(*_: Any, **__: Any) -> None:
        """Nothing is compiled, so there is no graph."""

    @staticmethod
    def disable(fn: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """A function that need not be kept from being compiled."""
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # that of somebody who looks through all modules
            raise AttributeError(name)
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return getattr(importlib.import_module(NAME), name)
