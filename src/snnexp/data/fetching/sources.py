"""Where every data set comes from: archives, addresses in order of trial, MD5, and what must lie on disk afterwards.

MD5 as published with the data sets (and as in tonic's and torchvision's tables); addresses as of November 2026. A file
is never accepted without its MD5, so an address without encryption can at worst waste time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from snnexp.data.files import matches


@dataclass(frozen=True)
class Archive:
    """One file to fetch. `products` are glob patterns in the data set's folder; one match means it is there already."""

    name: str
    md5: str
    urls: tuple[str, ...]
    products: tuple[str, ...]
    unpack: bool = True  # zip and tar archives; false: readers take the file as it is
    size: int | None = None  # bytes, where published
    unpacked_size: int | None = None  # bytes, roughly, for the check of free space before a download


@dataclass(frozen=True)
class Source:
    """A data set's folder under `dataset.root`, its archives, and where to read about it."""

    folder: str  # "" is the root itself
    archives: tuple[Archive, ...]
    page: str
    note: str = ""
    instead: tuple[str, ...] = ()  # files under the root that show another accepted copy; then nothing is fetched

    def directory(self, root: str | Path) -> Path:
        """The data set's own folder, absolute."""
        return (Path(root).expanduser() / self.folder).absolute()

    def missing(self, root: str | Path) -> list[Archive]:
        """Archives whose products are not on disk (or only half moved there by an unpacking that was cut off)."""
        directory = self.directory(root)
        if any(os.path.lexists(Path(root).expanduser() / path) for path in self.instead):
            return []
        return [archive for archive in self.archives if not _is_there(directory, archive)]


def unpacking_mark(directory: Path, archive: Archive) -> Path:
    """A file that exists only while unpacked files are being moved to their place."""
    return directory / f".{archive.name}.unpacking"


def _is_there(directory: Path, archive: Archive) -> bool:
    if unpacking_mark(directory, archive).exists():
        return False
    return any(matches(directory, pattern) for pattern in archive.products)


def _figshare(number: int) -> tuple[str, ...]:
    # The plain figshare.com/ndownloader address answers 202 with an empty body since 2025, so it comes last.
    return (
        f"https://api.figshare.com/v2/file/download/{number}",
        f"https://ndownloader.figshare.com/files/{number}",
        f"https://figshare.com/ndownloader/files/{number}",
    )


def _mendeley(file: str) -> tuple[str, ...]:
    return (f"https://data.mendeley.com/public-files/datasets/468j46mzdv/files/{file}/file_downloaded",)


def _idx(mirrors: tuple[str, ...], files: dict[str, tuple[str, int]]) -> tuple[Archive, ...]:
    """The four IDX files; the readers take them packed or unpacked."""
    return tuple(
        Archive(
            name=f"{stem}.gz",
            md5=md5,
            urls=tuple(f"{mirror}{stem}.gz" for mirror in mirrors),
            products=(f"{stem}.gz", stem, _dotted(stem)),
            unpack=False,
            size=size,
        )
        for stem, (md5, size) in files.items()
    )


def _dotted(stem: str) -> str:
    """The unpacked files' other common name, train-images.idx3-ubyte."""
    return stem.replace("-idx", ".idx")


SOURCES: dict[str, Source] = {
    "mnist": Source(
        "mnist",
        _idx(
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            {
                "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
                "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", 28_881),
                "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", 1_648_877),
                "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", 4_542),
            },
        ),
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion_mnist": Source(
        "fashion_mnist",
        _idx(
            (
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
                "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            ),
            {
                "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
                "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", 29_515),
                "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", 4_422_102),
                "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", 5_148),
            },
        ),
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "cifar10": Source(
        "",
        (
            Archive(
                "cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
                (
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
                ),
                ("cifar-10-batches-bin/*.bin",),
                unpacked_size=185_000_000,
            ),
        ),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "nmnist": Source(
        "NMNIST",
        (
            Archive(
                "train.zip",
                "20959b8e626244a1b502305a9e6e2031",
                _mendeley("39c25547-014b-4137-a934-9d29fa53c7a0"),
                ("Train/*/*.bin",),
            ),
            Archive(
                "test.zip",
                "69ca8762b2fe404d9b9bad1103e97832",
                _mendeley("05a4d654-7e03-4c15-bdfa-9bb2bcbea494"),
                ("Test/*/*.bin",),
            ),
        ),
        "https://www.garrickorchard.com/datasets/n-mnist",
    ),
    "dvs128": Source(
        "DVSGesture",
        (
            Archive(
                "ibmGestureTrain.tar.gz",
                "3a8f0d4120a166bac7591f77409cb105",
                _figshare(38022171),
                ("ibmGestureTrain/*/*.npy",),
            ),
            Archive(
                "ibmGestureTest.tar.gz",
                "56070e45dadaa85fff82e0fbfbc06de5",
                _figshare(38020584),
                ("ibmGestureTest/*/*.npy",),
            ),
        ),
        "https://research.ibm.com/interactive/dvsgesture/",
        note="This is the pre-processed variant with 1077 / 264 samples. The original recordings (trial-cut: 1176 /"
        " 288) have no direct address: get DvsGesture.tar.gz from the page above and unpack it under dataset.root.",
        instead=(
            "DvsGesture/trials_to_train.txt",
            "DVSGesture/trials_to_train.txt",
            "DVSGesture/DvsGesture/trials_to_train.txt",
        ),
    ),
    "shd": Source(
        "SHD",
        (
            Archive(
                "shd_train.h5.zip",
                "f3252aeb598ac776c1b526422d90eecb",
                ("https://zenkelab.org/datasets/shd_train.h5.zip",),
                ("shd_train.h5",),
            ),
            Archive(
                "shd_test.h5.zip",
                "1503a5064faa34311c398fb0a1ed0a6f",
                ("https://zenkelab.org/datasets/shd_test.h5.zip",),
                ("shd_test.h5",),
            ),
        ),
        "https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/",
        instead=("shd/shd_train.h5", "shd_train.h5"),
    ),
    "ssc": Source(
        "SSC",
        tuple(
            Archive(
                f"ssc_{part}.h5.zip", md5, (f"https://zenkelab.org/datasets/ssc_{part}.h5.zip",), (f"ssc_{part}.h5",)
            )
            for part, md5 in (
                ("train", "d102be95e7144fcc0553d1f45ba94170"),
                ("valid", "b4eee3516a4a90dd0c71a6ac23a8ae43"),
                ("test", "a35ff1e9cffdd02a20eb850c17c37748"),
            )
        ),
        "https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/",
        instead=("ssc/ssc_train.h5", "ssc_train.h5"),
    ),
    "cifar10dvs": Source(
        "CIFAR10DVS",
        (
            Archive(
                "CIFAR10DVS.zip",  # holds airplane.zip ... truck.zip, each with its folder of .aedat4 files
                "ce3a4a0682dc0943703bd8f749a7701c",
                _figshare(38023437),
                ("*/*.aedat4", "*/*.aedat"),
            ),
        ),
        "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
    ),
}
