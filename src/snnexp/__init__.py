"""snnexp: train spiking neural networks from the command line or from Python, and keep a complete record.

The names in `__all__` are the library (docs/library.md). Everything else in the package may change at any time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from snnexp.version import __version__ as __version__

if TYPE_CHECKING:
    from snnexp.config import NeuronConf as NeuronConf
    from snnexp.errors import ConfigError as ConfigError
    from snnexp.errors import DataError as DataError
    from snnexp.errors import SnnexpError as SnnexpError
    from snnexp.errors import TrackingError as TrackingError
    from snnexp.library.datasets import Data as Data
    from snnexp.library.datasets import open_data as open_data
    from snnexp.library.loading import load as load
    from snnexp.library.loading import read_nir as read_nir
    from snnexp.library.net import Net as Net
    from snnexp.library.nir_net import NirNet as NirNet
    from snnexp.library.records import runs as runs
    from snnexp.library.training import Run as Run
    from snnexp.library.training import train as train
    from snnexp.neurons.layer import SpikingLayer as SpikingLayer

# Where each name lies. Imported when first asked for: the command and `import snnexp` need none of it.
_HOMES = {
    "ConfigError": "snnexp.errors",
    "Data": "snnexp.library.datasets",
    "DataError": "snnexp.errors",
    "Net": "snnexp.library.net",
    "NirNet": "snnexp.library.nir_net",
    "NeuronConf": "snnexp.config",
    "Run": "snnexp.library.training",
    "SnnexpError": "snnexp.errors",
    "SpikingLayer": "snnexp.neurons.layer",
    "TrackingError": "snnexp.errors",
    "load": "snnexp.library.loading",
    "open_data": "snnexp.library.datasets",
    "read_nir": "snnexp.library.loading",
    "runs": "snnexp.library.records",
    "train": "snnexp.library.training",
}

__all__ = [  # noqa: RUF022 (verbs first)
    "load",
    "open_data",
    "read_nir",
    "runs",
    "train",
    "Data",
    "Net",
    "NirNet",
    "Run",
    "NeuronConf",
    "SpikingLayer",
    "ConfigError",
    "DataError",
    "SnnexpError",
    "TrackingError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
