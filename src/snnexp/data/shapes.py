"""Shape and classes of a configuration's data set: published facts, or for a user's own files what they say.

Nothing heavy is imported unless files have to be looked at.
"""

from __future__ import annotations

from snnexp.config import (
    DatasetConf,
    EventDatasetConf,
    FolderDatasetConf,
    FolderImagesConf,
    MotionDatasetConf,
    OwnDatasetConf,
    RandmanDatasetConf,
    TonicDatasetConf,
)
from snnexp.data.facts import FACTS


def found(conf: DatasetConf) -> tuple[tuple[int, int, int], int]:
    """Shape [C, H, W] and number of classes of this configuration's data set, from its files where they alone tell.

    Raises: DataError or ConfigError if they cannot be found or understood.
    """
    if isinstance(conf, FolderDatasetConf):
        from snnexp.data.readers.folder import open_reader

        reader = open_reader(conf)
        return reader.shape, len(reader.class_names)
    if isinstance(conf, OwnDatasetConf):
        from snnexp.data.readers.own import OwnReader

        own = OwnReader(conf)
        return own.shape, len(own.class_names)
    if isinstance(conf, TonicDatasetConf):
        from snnexp.data.readers.tonic_set import shape_and_classes

        return shape_and_classes(conf)
    if isinstance(conf, FolderImagesConf):
        from snnexp.data.images.folder import shape_and_classes as of_pictures

        return of_pictures(conf)
    facts = FACTS[conf.name]
    channels, height, _ = facts.shape
    if isinstance(conf, RandmanDatasetConf):
        return (channels, height, conf.num_units), conf.num_classes
    if isinstance(conf, MotionDatasetConf):
        return (channels, conf.size, conf.size), facts.num_classes
    return facts.shape, facts.num_classes


def num_classes(conf: DatasetConf) -> int:
    """Number of classes that the data set of this configuration has."""
    return found(conf)[1]


def frame_shape(conf: DatasetConf) -> tuple[int, int, int]:
    """[C, H, W] of one time step as the network sees it: after polarity merging, crop and down-sampling."""
    channels, height, width = found(conf)[0]
    if isinstance(conf, EventDatasetConf):
        if conf.polarity != "both":
            channels = 1
        if conf.crop is not None:
            height, width = min(height, conf.crop), min(width, conf.crop)
        # ceil: the last, incomplete cell keeps its events
        height, width = -(-height // conf.downsample), -(-width // conf.downsample)
    return channels, height, width
