"""What an error of a store says, in one line: libraries wrap the telling words in SQL and advice of their own."""

from __future__ import annotations

import re

from snnexp.secrets import hide

LONGEST = 300
_DRIVER = re.compile(r"\((?:\w+\.)*\w*(?:Error|Exception|Warning)\)\s*(.+)")  # (sqlite3.OperationalError) disk is full
_STATUS = re.compile(r"(?:error code|status code:?|HTTP(?: status)?|too many) (\d{3})\b")
_WHERE = r"(?:<[^>]*>: |HTTPS?Connection\w*\(.*?\): )?"  # an object's address; host and port, which the reader knows
_QUOTED = re.compile(r"Caused by \w+(?:Error|Exception)\((['\"])" + _WHERE + r"(.+)\1\)*\.?$")
_CAUSE = re.compile(r"Caused by (?:\w+Error|\w+Exception)\(.*?(?:: )?['\"]?(?:<[^>]*>: )?([^'\"]+?)['\"]?\)*\.?$")
_STATUSES = {
    "401": "it wants a name and a password (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN",
    "403": "it refuses this user or this name of the server (403): see MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, and `mlflow server --allowed-hosts`",
    "404": "no MLflow server at this address (404)",
    "407": "the proxy wants a name and a password (407): http_proxy=http://USER:PASSWORD@HOST:PORT",
    "429": "it has too many requests (429)",
    "500": "the server has an error of its own (500); its log says more",
    "502": "a proxy or gateway cannot reach it (502)",
    "503": "it is not ready (503)",
    "504": "a proxy or gateway waited for it in vain (504)",
}


def telling_line(error: BaseException) -> str:
    """The line of an error that says what is wrong, without a full stop, SQL or secrets.

    SQLAlchemy: the driver's own words, wherever they stand. Servers: the status in words.
    """
    text = hide(str(error)).strip()
    if found := _DRIVER.search(text):
        return _short(found[1])
    if found := _STATUS.search(text):
        return _STATUSES.get(found[1], f"it answers {found[1]}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if found := _QUOTED.search(lines[0]):
        return _short(found[2])
    if found := _CAUSE.search(lines[0]):
        return _short(found[1])
    return _short(lines[0])


def _short(text: str) -> str:
    return text.strip()[:LONGEST].rstrip(" .:")
