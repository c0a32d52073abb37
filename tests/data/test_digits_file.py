"""The table of the digits, read without importing scikit-learn: the same numbers as its own loader gives."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snnexp.data.images.digits import load_digits, read_table, table_path
from snnexp.errors import DataError


def test_same_arrays_as_scikit_learns_loader() -> None:
    from sklearn import datasets

    theirs = datasets.load_digits()
    pixels, labels = read_table(table_path())
    assert pixels.shape == theirs.data.shape == (1797, 64)
    assert (pixels == theirs.data).all() and (labels == theirs.target).all()
    images, labels, train, test = load_digits()
    assert (images[:, 0] == np.round(theirs.images * 255 / 16)).all() and (labels == theirs.target).all()
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    assert sorted([*train, *test]) == list(range(1797)) and len(test) == 360


def changed(change: Callable[[list[str]], object]) -> bytes:
    """The real table after a change to its lines, packed."""
    lines = gzip.decompress(table_path().read_bytes()).decode().splitlines()
    change(lines)
    return gzip.compress("\n".join(lines).encode())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (lambda: table_path().read_bytes()[:20_000], "end-of-stream marker"),
        (lambda: b"<html>not found</html>", "Not a gzipped file"),
        (lambda: table_path().read_bytes()[:1000] + bytes(1000) + table_path().read_bytes()[2000:], "cannot read"),
        (lambda: b"", "a table of 0x0, not 1797x65"),
        (lambda: changed(lambda lines: lines.pop()), "a table of 1796x65, not 1797x65"),
        (lambda: changed(lambda lines: lines.__setitem__(3, lines[3] + ",1")), "cannot read"),
        (lambda: changed(lambda lines: lines.__setitem__(3, lines[3].replace("0", "x"))), "cannot read"),
        (lambda: changed(lambda lines: lines.__setitem__(3, lines[3].replace("0", "300", 1))), "cannot read"),
        (lambda: changed(lambda lines: lines.__setitem__(3, lines[3].replace("0", "17", 1))), "levels above 16"),
        (lambda: changed(lambda lines: lines.__setitem__(3, lines[3][:-1] + "10")), "labels above 9"),
        (lambda: gzip.compress("0,é\n".encode()), "cannot read"),
    ],
    ids=["cut off", "html", "bytes", "empty", "line", "column", "letter", "300", "level", "label", "encoding"],
)
def test_damage_is_one_clear_error(content: Callable[[], bytes], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(content())
    with pytest.raises(DataError, match=r"^dataset=digits: ") as error:
        read_table(path)
    assert complaint in str(error.value) and str(path) in str(error.value)
    assert "pip install --force-reinstall" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_missing_package_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"installed without .*digits\.csv\.gz\. Reinstall it: pip install"):
        read_table(tmp_path / "digits.csv.gz")
    with pytest.raises(DataError, match="cannot read"):
        read_table(tmp_path)  # a folder
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"is not installed: pip install scikit-learn$"):
        load_digits()
