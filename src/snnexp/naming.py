"""Words of users in names of files and folders: the one place where they are made harmless."""

from __future__ import annotations

import hashlib
import unicodedata

LONGEST = 80  # bytes of a word; three of them and an identity stay below the 255 that file systems take
_ALLOWED = "._+-"


def path_word(word: str) -> str:
    """`word` as part of a file's or folder's name; an ordinary word (letters, digits, `._+-`) stays as it is.

    Anything else (slashes, blanks, control characters, a dot or dash in front, more than 80 bytes) is replaced and gets
    `~` and ten digits of the word's SHA-256 behind it. Ordinary words have no `~`, so different words keep different
    names.
    """
    plain = "".join(sign if sign.isalnum() or sign in _ALLOWED else "_" for sign in word)
    plain = unicodedata.normalize("NFC", plain)
    short = plain.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
    if word and short == word and not word.startswith((".", "-")) and not word.endswith("."):
        return word
    digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{short.strip('.-')}~{digest}"
