"""SQLite and network file systems: locks there are slow at best and broken at worst, and several writers lose records.

One process alone may be lucky, so a single run only says it; several machines at once are refused.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from pathlib import Path

from snnexp.commands import program
from snnexp.errors import TrackingError
from snnexp.tracking.address import sqlite_path

log = logging.getLogger(__name__)

KINDS = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "afs", "cifs", "smb3", "smbfs", "fhgfs"}
KINDS |= {"panfs", "pvfs2", "orangefs", "wekafs", "ibrix", "sshfs", "glusterfs"}
MOUNTS = Path("/proc/self/mountinfo")
_told: set[str] = set()


def kind_of(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The network file system that `path` lies on (nfs4, lustre, ...), or None if it is a local one or unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        fields, _, after = line.partition(" - ")
        words = fields.split()
        if len(words) < 5 or not after:
            continue
        # the kernel writes a space in a folder's name as \040
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), words[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two at one place the later one is on top
            best, kind = point, after.split()[0]
    kind = kind.removeprefix("fuse.")
    return kind if kind in KINDS else None


def server_lines(database: Path) -> str:
    """What to type instead: a server beside its database, on a disk of its own machine."""
    return (
        f"  {program('mlflow')} server --host 0.0.0.0 --workers 2 --allowed-hosts '*' "
        f"--backend-store-uri sqlite:////tmp/mlflow.db "
        f"--artifacts-destination {shlex.quote(f'{database.parent}/mlartifacts')}\n"
        "  export MLFLOW_TRACKING_URI=http://$(hostname):5000   # the name of the machine that the server is on\n"
        f"  {program()} -m ..."
    )


def refuse_for_many(uri: str) -> None:
    """Before jobs on several machines are launched. Raises: TrackingError with the server's three lines."""
    path = sqlite_path(uri)
    kind = kind_of(path) if path is not None else None
    if path is not None and kind is not None:
        raise TrackingError(
            f"tracking.uri={uri}: a SQLite file on a network file system ({kind}), which several machines would write "
            "to at once: records get lost. Start a server where its database can lie on a local disk, and use that "
            f"(docs/clusters.md):\n{server_lines(path)}"
        )


def warn_of_one(uri: str) -> None:
    """Where one process opens the file: it may go well."""
    path = sqlite_path(uri)
    kind = kind_of(path) if path is not None and uri not in _told else None
    if path is not None and kind is not None:
        _told.add(uri)
        log.warning(
            "%s lies on a network file system (%s), where SQLite may wait for long or fail, and several runs at once "
            "must not use it. A server does better (docs/clusters.md):\n%s",
            path,
            kind,
            server_lines(path),
        )
