"""Code that is not ours in a run: which keys name it, what it is exactly, and whether it may be imported.

Standard library only.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from snnexp.errors import ConfigError
from snnexp.registry import CALLBACKS, KINDS, Kind, is_known_module, reference_of, source_file
from snnexp.tracking.provenance import git

log = logging.getLogger(__name__)

CODE = "code"  # key of a run's configuration, and beginning of its tags


def own_words(config: Any) -> Iterator[tuple[Kind, str]]:
    """Every word of a configuration (typed, or plain dicts) that names something of the registry, ours too."""
    for kind in KINDS.values():
        value = config
        for part in kind.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        for word in value if isinstance(value, list | tuple) else [value]:
            if isinstance(word, str):
                yield kind, word


def foreign(kind: Kind, word: str) -> bool:
    """Whether a word means code that neither we nor torch and snnTorch wrote."""
    return word not in kind.ours and not is_known_module(word)


def code_of(config: Any) -> dict[str, str]:
    """Key -> SHA-256 of the file, for each piece of foreign code that a configuration names.

    Raises: ConfigError if there is no such file or module.
    """
    hashes = {}
    for key, kind, word in _by_key(config):
        path = source_file(kind, word)
        hashes[key] = "compiled" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return hashes


def with_code(config: dict[str, Any]) -> dict[str, Any]:
    """The resolved configuration, and under `code` the hashes of the foreign code in it, which make it another run.

    A run that has none is what it was without the key.
    """
    hashes = code_of(config)
    return {**config, CODE: hashes} if hashes else config


def code_tags(config: Any) -> dict[str, str]:
    """What the foreign code is, for the record: `code.<key>` -> reference, hash, package, commit."""
    tags = {}
    for kind, word in own_words(config):
        if word not in kind.ours and kind.key not in tags:
            tags[kind.key] = word  # torch's and snnTorch's: their versions are in the environment's record
    for key, kind, word in _by_key(config):
        path = source_file(kind, word)
        reference = reference_of(kind, word)
        parts = [word if word == reference else f"{word} = {reference}"]
        if path is not None:
            parts += [f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}", *_home(path)]
        parts += _package(reference)
        tags.pop(kind.key, None)
        tags[key] = " ".join(parts)
    return {f"{CODE}.{key}": text for key, text in tags.items()}


def _by_key(config: Any) -> Iterator[tuple[str, Kind, str]]:
    """Each foreign word with its key; those of a list are numbered."""
    words = list(own_words(config))
    for number, (kind, word) in enumerate(words):
        if not foreign(kind, word):
            continue
        same = [index for index, (other, _) in enumerate(words) if other is kind]
        yield kind.key if len(same) == 1 else f"{kind.key}.{same.index(number)}", kind, word


def _home(path: Path) -> list[str]:
    """Commit and dirty flag of the file's repository, if it is tracked in one."""
    if git(path.parent, "ls-files", "--error-unmatch", path.name) is None:
        return []
    commit = git(path.parent, "rev-parse", "HEAD")
    changed = git(path.parent, "status", "--porcelain", "--untracked-files=no")
    state = "unknown" if changed is None else "true" if changed else "false"
    return [f"commit:{commit}", f"dirty:{state}"] if commit else []


def _package(reference: str) -> list[str]:
    """Name and version of the installed package that a module comes from."""
    top = reference.partition(":")[0].partition(".")[0]
    if reference.partition(":")[0].endswith(".py"):
        return []
    names = metadata.packages_distributions().get(top, [])
    return [f"package:{name} {metadata.version(name)}" for name in dict.fromkeys(names)]


# --- trust --------------------------------------------------------------------------------------------------------


def refuse_untrusted(config: Any, where: str, trusted: bool, typed: Container[str] = ()) -> None:
    """Refuse to import what somebody else's file names, unless the user says so or has typed the key now.

    Args:
        config: the configuration that would be used, from a checkpoint or a record.
        where: what it comes from, for the message.
        trusted: whether the user said trust_code=true.
        typed: keys that this command gives itself.
    Raises: ConfigError that lists the code and says what to do.
    """
    named = [f"{key}={word}" for key, kind, word in _by_key(config) if kind.key not in typed]
    if named and not trusted:
        raise ConfigError(
            f"{where}: its configuration names code that is not snnexp's: {', '.join(named)}. Nothing of it was "
            "imported. If you know and trust this code, say so: trust_code=true (in Python: trust_code=True)."
        )


def asks_for_trust(config: Any) -> bool:
    """Whether task=evaluate refuses such a run without trust_code=true; callbacks are for training only."""
    return any(kind is not CALLBACKS and foreign(kind, word) for kind, word in own_words(config))


def warn_of_changes(config: Any, then: Mapping[str, str], where: str) -> None:
    """Say which trusted code of `config` is not what the run was made with; `then`: its hashes, by key."""
    for key, digest in code_of(config).items():
        if then.get(key, digest) != digest:
            log.warning("%s: %s is not the code that made this run (sha256 %s, then %s)", where, key, digest, then[key])
