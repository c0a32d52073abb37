"""Passwords and tokens in the store's address: taken out where the address enters, put back where it is used.

Whatever is composed, kept, sent, logged or raised holds the masked address, `http://user:***@host`. The real one lives
in this process and in its children (joblib's, submitit's), which inherit it with the environment. `hide` is for texts
that somebody else made of a real address, such as the error of a request.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MARK = "***"
VARIABLE = "SNNEXP_MASKED"  # JSON, masked address -> real one: how child processes get to know it
SHORTEST = 4  # a secret of fewer characters is only hidden inside its address: elsewhere it would blot out words

_ADDRESS = re.compile(r"[A-Za-z][\w+.\-]*://[^\s'\"<>,]+")
_NAMED = re.compile(
    r"(?i)((?:^|[?&;#{\s])[\w.\-]*(?:passw|pwd|token|secret|api_?key|access_?key|signature|credential|odbc_connect)"
    r"[\w.\-]*=)([^&;#\s]+)"
)
_ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t'\"])")  # what Hydra's grammar takes a backslash from
_OWN_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_OF_HYDRA = "hydra.sweeper.storage"  # the one key of Hydra's that holds an address: of a search's study
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def _split(address: str) -> tuple[str, list[str]]:
    """The masked address and the secrets in it."""
    found: list[str] = []
    scheme, separator, rest = address.partition("://")
    path, mark, query = rest.rpartition("?")
    if scheme.lower().startswith("sqlite"):  # a path, with whatever its folders are called, and perhaps a query
        if not mark or "/" in query:
            return address, []
        address = mark + query
    elif separator:
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        user, at, _ = authority.rpartition("@")
        if not at and "@" in rest and re.match(r"[^:/?#]*:(?!\d+(?:[/?#]|$))", rest):
            user, at, _ = rest.rpartition("@")  # a password with a raw / or ? in it
        if at:
            name, colon, password = user.partition(":")
            if colon and password:
                found.append(password)
                rest = f"{name}:{MARK}{rest[len(user) :]}"
            elif name and scheme.lower().startswith("http"):  # https://TOKEN@host
                found.append(name)
                rest = MARK + rest[len(user) :]
        address = scheme + separator + rest

    def named(match: re.Match[str]) -> str:
        found.append(match[2])
        return match[1] + MARK

    masked = _NAMED.sub(named, address)
    if scheme.lower().startswith("sqlite"):
        masked = f"{scheme}{separator}{path}{masked}"
    return masked, [secret for secret in found if not secret.startswith(MARK)]


def _known() -> dict[str, str]:
    try:
        return dict(json.loads(os.environ.get(VARIABLE) or "{}"))
    except ValueError:
        return {}


def mask(address: str) -> str:
    """`address` without its secrets; they are remembered, so that `reveal` gives the whole address back."""
    masked, secrets = _split(address)
    if not secrets:
        return address
    known = _known()
    number = 2
    plain = masked
    while known.get(masked, address) != address:  # the same user and host with another password
        masked, number = plain.replace(MARK, f"{MARK}{number}", 1), number + 1
    if masked not in known:
        os.environ[VARIABLE] = json.dumps({**known, masked: address})
    guard_logging()
    return masked


def reveal(masked: str) -> str:
    """The address that `mask` made `masked` of; any other comes back as it is."""
    return _known().get(masked, masked)


def mask_arguments(arguments: list[str]) -> list[str]:
    """The command line with every address in it masked. Flags and Hydra's own keys, but for one, are left alone."""
    return [_mask_argument(argument) for argument in arguments]


def _mask_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-") or _is_hydras(key.lstrip("+~")):
        return argument
    quoted = re.fullmatch(r"(['\"])(.*)\1", value, re.DOTALL)
    if quoted and "://" in value:
        masked = _masked_value(quoted[2])
        return argument if masked is None else f"{key}={quoted[1]}{masked}{quoted[1]}"
    return key + equals + _ADDRESS.sub(lambda found: _masked_value(found[0]) or found[0], value)


def _is_hydras(key: str) -> bool:
    return key.startswith("hydra.") and key != _OF_HYDRA


def _masked_value(value: str) -> str | None:
    """An address as the command line spells it, masked; None if nothing in it is secret."""
    return mask(_ESCAPED.sub(r"\1", value)) if _split(value)[1] else None


def _hidden() -> Iterator[tuple[str, str]]:
    """(what, replacement) for everything that no text may show, longest first."""
    pairs: dict[str, str] = {}
    known = _known()
    addresses = [*known.values(), os.environ.get("MLFLOW_TRACKING_URI", "")]
    addresses += [os.environ.get(name, "") for proxy in _PROXIES for name in (proxy, proxy.upper())]
    bare = [os.environ.get(name, "") for name in _OWN_VARIABLES]
    for address in addresses:
        masked, secrets = _split(address)
        if secrets:
            pairs[address] = masked
            pairs.update({f":{secret}@": f":{MARK}@" for secret in secrets})
            pairs.update({f"={secret}": f"={MARK}" for secret in secrets})
            bare += secrets
    for secret in bare:
        for form in (secret, unquote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]):
            if len(form) >= SHORTEST:
                pairs.setdefault(form, MARK)
    yield from sorted(pairs.items(), key=lambda pair: -len(pair[0]))


def hide(text: str) -> str:
    """`text` without any secret that is known here."""
    for what, replacement in _hidden():
        text = text.replace(what, replacement)
    return text


@functools.cache
def guard_logging() -> None:
    """From now on no log record, whoever makes it, holds a secret; nor does the traceback in it."""
    make = logging.getLogRecordFactory()

    def factory(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = make(*arguments, **more)
        try:
            text = record.getMessage()
        except Exception:  # wrong arguments: logging reports them in its own way
            return record
        shown = hide(text)
        if shown != text:
            record.msg, record.args = shown, None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = hide(logging.Formatter().formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(factory)


def mask_composed(config: Any) -> Any:
    """Mask the addresses of the store and of a search's study in what Hydra composed.

    Hydra writes .hydra/*.yaml before a job of ours starts. The command line has been masked before; this is for an
    address in a user's own YAML file. An interpolation,
    `${oc.env:...}`, stays as it is written.
    """
    from omegaconf import OmegaConf, open_dict, read_write

    for path in ("tracking.uri", _OF_HYDRA):
        name, _, key = path.rpartition(".")
        node: Any = config
        for part in name.split("."):
            node = node.get(part) if OmegaConf.is_dict(node) and part in node else None
        if OmegaConf.is_dict(node) and key in node and not OmegaConf.is_interpolation(node, key):
            address = node[key]
            if isinstance(address, str) and (masked := mask(address)) != address:
                with read_write(node), open_dict(node):
                    node[key] = masked
    return config
