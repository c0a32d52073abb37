"""Two users of one folder: locks of the other's files, a store that can be read and not be written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from snnexp.locks import ReadOnlyLock, file_lock

NOBODY = 65534

PACK = """
import os, sys, torch
from pathlib import Path
from snnexp.data import open_data
from snnexp.config import MotionDatasetConf

def open_in(root):
    conf = MotionDatasetConf(name="motion", root=root, size=16, train_per_class=3, test_per_class=1,
                             duration_ms=20.0, val_fraction=0.34)
    return open_data(conf, torch.device("cpu")).store.folder

root, umask, user = sys.argv[1:]
open_in(root + "-other")  # whatever is imported on the way may be out of the other user's reach
os.umask(int(umask, 8))
if user != "0":
    os.setgid(int(user)); os.setuid(int(user))
print(open_in(root))
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that others can reach (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_lock_that_may_only_be_read_is_the_same_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path), pytest.raises(Timeout):
        ReadOnlyLock(path, 0).acquire()
    lock = ReadOnlyLock(path)
    with lock, pytest.raises(Timeout):
        FileLock(path, timeout=0).acquire()
    lock.release()
    with file_lock(path, timeout=0):
        pass


def test_a_new_lock_is_open_to_the_group_if_the_umask_says_so(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with file_lock(tmp_path / "lock"):
            assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o664
    finally:
        os.umask(before)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize(
    ("umask", "mode", "own"), [("002", 0o777, False), ("022", 0o777, False), ("022", 0o755, False)]
)
def test_another_user_reads_the_packed_store(shared: Path, umask: str, mode: int, own: bool) -> None:
    root = shared / "data"
    for user in (0, NOBODY):
        if user:
            os.chmod(root / "event-store", mode)
        environment = {**os.environ, "HOME": str(shared), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PACK, str(root), umask, str(user)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip().splitlines()[-1]).parent == root / "event-store"
