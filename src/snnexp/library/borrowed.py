"""What a run changes in its process, put back afterwards: a notebook goes on with its own.

Hydra's global state (our reading of words and files, the schemas, GlobalHydra, HydraConfig), signal handlers, random
generators, and torch's settings. The command needs none of this: its process is its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from snnexp import collector, interrupts


@contextmanager
def borrowed_process() -> Iterator[None]:
    """Everything that training changes."""
    with ExitStack() as stack:
        for part in (collector.lent, borrowed_hydra, interrupts.borrowed, borrowed_torch, borrowed_randomness):
            stack.enter_context(part())
        yield


@contextmanager
def borrowed_hydra() -> Iterator[None]:
    """A Hydra of our own; a Hydra program that we are called from finds its state as it was."""
    import hydra._internal.hydra
    import hydra.conf  # registers Hydra's own schemas, once
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser import overrides_parser
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from hydra.version import VersionBase
    from omegaconf.basecontainer import BaseContainer

    Plugins.instance()  # these register their sources, once
    store, sources = ConfigStore.instance(), SourcesRegistry.instance()
    parser: Any = overrides_parser
    hydra_main: Any = hydra._internal.hydra
    saved = _copied(store.repo), dict(sources.types), dict(BaseContainer._resolvers)
    patched = hydra_main.ConfigLoaderImpl, parser.HydraOverrideVisitor, parser.OverridesParser.parse_rule
    ours: tuple[Any, ...] = (GlobalHydra, HydraConfig, VersionBase)
    theirs = {kind: Singleton._instances.pop(kind) for kind in ours if kind in Singleton._instances}
    try:
        yield
    finally:
        for kind in ours:
            Singleton._instances.pop(kind, None)
        Singleton._instances.update(theirs)
        store.repo, sources.types, BaseContainer._resolvers = saved
        hydra_main.ConfigLoaderImpl, parser.HydraOverrideVisitor, parser.OverridesParser.parse_rule = patched


def _copied(tree: Any) -> Any:
    """Nested dicts, copied; what lies in them is shared."""
    return {key: _copied(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


@contextmanager
def borrowed_randomness() -> Iterator[None]:
    """Python's, numpy's and torch's random numbers go on afterwards as if nobody had drawn any."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def borrowed_torch() -> Iterator[None]:
    """torch's settings for the whole process: threads, tiny numbers, deterministic algorithms."""
    import torch

    threads, flushes = torch.get_num_threads(), bool((torch.tensor([1e-40]) * 1.0 == 0).item())
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        torch.backends.cudnn.benchmark = benchmark
