"""`dataset=images`: a user's own pictures, a folder per class, PNG or JPEG, as uint8 [N, C, H, W] in memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnexp.data.class_folders import ClassFolders, find_classes
from snnexp.data.files import check_file, damaged, not_this, read_head
from snnexp.data.readers.columns import sensor_size
from snnexp.data.splits import stratified_split
from snnexp.errors import ConfigError, DataError, unknown_choice
from snnexp.schema.dataset import FolderImagesConf

SUFFIXES = (".png", ".jpg", ".jpeg")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
CHANNELS = {"grey": 1, "rgb": 3}
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I")  # Pillow's words for pictures without colour

Part = tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]  # images, labels, identities


def shape_and_classes(conf: FolderImagesConf) -> tuple[tuple[int, int, int], int]:
    """[C, H, W] and number of classes; looks at the first picture only where the configuration leaves it open."""
    found = find_classes("images", conf, SUFFIXES)
    return _shape(conf, found), len(found.class_names)


def load(conf: FolderImagesConf) -> tuple[dict[str, Part], tuple[str, ...], tuple[str, ...]]:
    """Read all pictures. Returns: parts (train, test, and val if the folder has one), class names, notes.

    Raises: DataError naming a picture that is damaged or differs from the first; ConfigError for a wrong key.
    """
    found = find_classes("images", conf, SUFFIXES)
    shape = _shape(conf, found)
    count = len(found.files)
    try:
        images = np.empty((count, *shape), np.uint8)
    except MemoryError:
        size = count * shape[0] * shape[1] * shape[2] / 2**30
        raise DataError(f"{found.base}: {count:,} pictures need {size:,.0f} GiB. Set a smaller dataset.size.") from None
    oddities: dict[str, int] = {}
    for i, (_, _, path) in enumerate(found.files):
        images[i] = _picture(path, conf, shape, found, oddities)
    labels = np.array([label for _, label, _ in found.files], np.int64)
    names = [found.name_of(path) for _, _, path in found.files]
    of = np.array([part for part, _, _ in found.files])
    index = {part: np.flatnonzero(of == part) for part in ("train", "val", "test", "all")}
    pool = np.concatenate([index["train"], index["all"]])
    if not len(index["test"]):
        train, test = stratified_split(labels[pool], conf.test_fraction, conf.split_seed, key="dataset.test_fraction")
        index["train"], index["test"] = pool[train], pool[test]
    parts = {
        part: (images[chosen], labels[chosen], [names[i] for i in chosen])
        for part, chosen in index.items()
        if part in ("train", "test") or (part == "val" and len(chosen))
    }
    notes = tuple(f"{n:,} of {count:,} pictures {what}" for what, n in oddities.items())
    return parts, found.class_names, (*found.notes, *notes)


def _shape(conf: FolderImagesConf, found: ClassFolders) -> tuple[int, int, int]:
    if conf.colour is not None and conf.colour not in CHANNELS:
        raise ConfigError(unknown_choice("dataset.colour", conf.colour, CHANNELS))
    size = _size(conf.size)
    if size is not None and conf.colour is not None:
        return CHANNELS[conf.colour], size[1], size[0]
    width, height, grey = _look(found.files[0][2])
    channels = CHANNELS[conf.colour] if conf.colour is not None else 1 if grey else 3
    width, height = size or (width, height)
    return channels, height, width


def _size(value: Any) -> tuple[int, int] | None:
    """Width and height; one number is a square."""
    if value is None:
        return None
    try:
        width, height = sensor_size(value) or (0, 0)
    except ConfigError:
        raise ConfigError(
            f"dataset.size={value}: write one number (dataset.size=32: squares), or width x height: dataset.size=48x32."
        ) from None
    return (width, width) if isinstance(value, int) or str(value).isdecimal() else (width, height)


def _open(path: Path) -> Any:
    """The picture, its pixels decoded. Raises: DataError naming the file."""
    from PIL import Image, ImageOps

    if not read_head(path, 8).startswith(MAGIC):
        raise DataError(not_this(check_file(path), "a PNG or JPEG picture"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "MPO")) as image:
                return ImageOps.exif_transpose(image)  # decodes it, and turns it as the camera says
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {error}. Scale it down first.") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise DataError(damaged(path, f"not a readable picture ({error})")) from None


def _look(path: Path) -> tuple[int, int, bool]:
    image = _open(path)
    return image.width, image.height, image.mode in GREY_MODES


def _picture(
    path: Path, conf: FolderImagesConf, shape: tuple[int, int, int], found: ClassFolders, oddities: dict[str, int]
) -> NDArray[np.uint8]:
    """One picture, [C, H, W]."""
    from PIL import Image, ImageOps

    image = _open(path)
    channels, height, width = shape
    grey = image.mode in GREY_MODES
    if conf.colour is None and grey != (channels == 1):
        first = found.files[0][2].name
        raise DataError(
            f"{path}: is {'grey' if grey else 'in colour'}, but {first} is {'in colour' if grey else 'grey'}. Set"
            " dataset.colour=grey or dataset.colour=rgb for all."
        )
    if image.mode.startswith("I"):  # 16 bits: the upper eight, as other programs show them
        image = Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) >> 8).astype(np.uint8))
        _count(oddities, "have 16 bits, of which the upper 8 are taken")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
        _count(oddities, "are partly transparent: laid on black")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        if conf.size is None:
            raise DataError(
                f"{path}: has {image.width}x{image.height} pixels, but {found.files[0][2].name} has {width}x{height}."
                " Set dataset.size, such as dataset.size=32, to bring all to one size."
            )
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)  # scaled to cover, then cut evenly
        _count(oddities, f"brought to {width}x{height}")
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _count(oddities: dict[str, int], what: str) -> None:
    oddities[what] = oddities.get(what, 0) + 1
