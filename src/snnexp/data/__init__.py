"""Data sets: files on disk to batches on the device. `open_data` is the only door.

Nothing heavy is imported here, so that `snnexp.data.facts` stays cheap to read.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from snnexp.config import DatasetConf, EventDatasetConf
from snnexp.data.facts import FACTS
from snnexp.errors import ConfigError, unknown_choice

if TYPE_CHECKING:
    import torch

    from snnexp.data.base import DataSource

logger = logging.getLogger(__name__)


def open_data(conf: DatasetConf, device: torch.device) -> DataSource:
    """Return the data set of the configuration, split and ready, fetching missing files first if allowed.

    Raises: DataError if files are missing or damaged, ConfigError if the configuration does not fit the data. The
    message says what to do.
    """
    if conf.name not in FACTS:
        raise ConfigError(unknown_choice("dataset", conf.name, FACTS))
    from snnexp.data.fetching.downloads import ensure

    ensure(conf)
    source: DataSource
    if FACTS[conf.name].kind == "image":
        from snnexp.data.images.source import open_images

        source = open_images(conf, device)
    else:
        from snnexp.data.events.source import open_events

        source = open_events(cast(EventDatasetConf, conf), device)
    if not source.info.complete:
        logger.warning("dataset=%s is incomplete: %s", conf.name, "; ".join(source.info.notes) or source.info.counts)
    return source
