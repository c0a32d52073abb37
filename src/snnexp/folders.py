"""Where our own files lie."""

from __future__ import annotations

import os
from pathlib import Path


def conf_dir() -> Path:
    """The folder of configuration files: inside an installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    # the checkout first: an editable install leaves a stale copy of conf/ beside the package (PITFALLS 3.1)
    for folder in (here.parents[1] / "conf", here / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise SystemExit("snnexp: the configuration folder conf/ was not found beside the package. Reinstall snnexp.")


def user_cache() -> Path:
    """The folder for what snnexp keeps for one user. Raises: OSError if the user has no home."""
    if cache_home := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache_home) / "snnexp"
    try:
        return Path.home() / ".cache" / "snnexp"
    except RuntimeError as error:  # a container that runs as a user without a name
        raise OSError(str(error)) from error
