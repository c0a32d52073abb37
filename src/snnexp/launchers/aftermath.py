"""The last line of a Slurm job's batch script: `python -m snnexp.launchers.aftermath SWEEP_FOLDER`.

It runs where the job's own process ended badly (kill -9, out of memory), on the same node, whether or not anybody else
is left to notice.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Put right what died in the sweep of the folder."""
    from snnexp.tracking.healing import look_after

    for folder in arguments:
        look_after(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
