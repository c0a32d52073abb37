"""Finding, opening and naming raw files: the one place where folders are listed and where a bad file gets its message.

Every reader goes through here, so that all of them agree on what is no recording (hidden companion files), what is an
error (a dangling link, a folder or a pipe in a file's place, a file that cannot be read), and what to do about it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from pathlib import Path

from snnexp.commands import command_line, start_folder
from snnexp.errors import DataError

# What systems leave beside the files of a user, besides hidden files: Windows, macOS, file servers, file systems.
COMPANIONS = frozenset(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "icon\r", "@eadir", "lost+found")
)
NAMED = 3  # examples in a message
HEAD_BYTES = 512


def is_companion(name: str) -> bool:
    """Whether a file or folder is the system's and not the data set's: hidden (._x, .DS_Store), Thumbs.db, ..."""
    return name.startswith(".") or name.lower() in COMPANIONS


# --- finding ------------------------------------------------------------------------------------------------------


class Finder:
    """Lists the folders of one data set and remembers which files were passed over, for a note in the record."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.passed_over: list[Path] = []

    def files(self, folder: Path, *suffixes: str) -> list[Path]:
        """Regular files in `folder` with one of the suffixes, sorted by name; none if the folder is not there.

        Raises: DataError for a folder that cannot be listed, and for whatever has the suffix but cannot be a recording.
        """
        found = []
        for entry in _entries(folder):
            path = folder / entry.name
            if not entry.name.lower().endswith(suffixes):
                if entry.is_file():
                    self.passed_over.append(path)
                continue
            if not entry.is_file(follow_symlinks=False):
                check_file(path)
            check_name(path)
            found.append(path)
        return found

    def folders(self, folder: Path) -> list[Path]:
        """The folders in `folder`, sorted by name; none if it is not there. Raises: DataError for a dangling link."""
        found = []
        for entry in _entries(folder):
            path = folder / entry.name
            if entry.is_symlink() and not path.exists():
                raise DataError(_not_a_file(path))
            if entry.is_dir():
                check_name(path)
                found.append(path)
        return found

    def notes(self) -> tuple[str, ...]:
        """One line about the files that were passed over."""
        if not self.passed_over:
            return ()
        names = sorted(path.relative_to(self.base).as_posix() for path in self.passed_over)
        return (f"{count_of(names, 'file')} passed over: {some(names)}",)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return sorted((e for e in listing if not is_companion(e.name)), key=lambda entry: entry.name)
    except FileNotFoundError:
        if folder.is_symlink():
            raise DataError(_not_a_file(folder)) from None
        return []
    except NotADirectoryError:
        raise DataError(f"{folder}: is not a folder, but one is wanted there. Move it away.") from None
    except OSError as error:
        raise DataError(unreadable(folder, error)) from None


def find_file(path: Path) -> Path | None:
    """`path` if a file lies there, None if nothing does. Raises: DataError if something else does."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(unreadable(path, error)) from None
    return check_file(path)


def check_file(path: Path) -> Path:
    """`path` if it is, or leads to, a regular file. Raises: DataError naming it and what it is instead."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(_not_a_file(path)) from None
    except OSError as error:
        raise DataError(unreadable(path, error)) from None
    if not stat.S_ISREG(mode):
        raise DataError(_not_a_file(path, mode))
    return path


def check_folder(path: Path) -> None:
    """Nothing, or a folder, may lie at `path`. Raises: DataError naming what else does."""
    if os.path.lexists(path) and not path.is_dir():
        if path.exists():
            raise DataError(f"{path}: is not a folder, but one is wanted there. Move it away.")
        raise DataError(_not_a_file(path))


def matches(directory: Path, pattern: str) -> bool:
    """Whether anything but companion files fits `pattern` (path parts, each a glob), a dangling link included."""
    part, _, rest = pattern.partition("/")
    wanted = re.compile(re.escape(part).replace(r"\*", "[^/]*"))
    try:
        names = [part] if "*" not in part else sorted(os.listdir(directory))
    except OSError:
        return False
    for name in names:
        path = directory / name
        fits = not is_companion(name) and wanted.fullmatch(name) and os.path.lexists(path)
        if fits and (not rest or matches(path, rest)):
            return True
    return False


def check_name(path: Path) -> Path:
    """`path`, whose name goes into text files, one a line, and into the record. Raises: DataError if it cannot."""
    name = path.name
    if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 or c in "\x7f\x85\u2028\u2029" for c in name):
        raise DataError(
            f"{path.parent}: the name {name!r} has bytes that are no text (control characters, or another encoding than"
            " UTF-8). Rename the file, or move it away."
        )
    return path


# --- reading ------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises: DataError naming it if it cannot be read."""
    try:
        return check_file(path).read_bytes()
    except OSError as error:
        raise DataError(unreadable(path, error)) from None


def read_head(path: Path, length: int = HEAD_BYTES) -> bytes:
    """The first bytes of a file. Raises: DataError naming it if it cannot be read."""
    try:
        with check_file(path).open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise DataError(unreadable(path, error)) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises: DataError naming it if it cannot be read."""
    try:
        with check_file(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(unreadable(path, error)) from None


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8 (with or without a byte order mark) or UTF-16, whatever ends its lines.

    Raises: DataError naming the file if it cannot be read or is no text.
    """
    content = read_bytes(path)
    encoding = _encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}: line {line} is not UTF-8 text (byte {content[error.start]:#04x}). Save the file as UTF-8."
        ) from None
    if "\0" in text:
        raise DataError(not_this(path, "a text file in UTF-8 or UTF-16"))
    return re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff"))


def _encoding_of(content: bytes) -> str:
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = content[:HEAD_BYTES]
    if len(head) >= 2 and len(content) % 2 == 0:  # UTF-16 without a mark: every other byte of ASCII text is 0
        if 0 not in head[::2] and not any(head[1::2]):
            return "utf-16-le"
        if 0 not in head[1::2] and not any(head[::2]):
            return "utf-16-be"
    return "utf-8"


# --- messages -----------------------------------------------------------------------------------------------------

# How files of other kinds begin, what they are, and what to do with one; the first that fits counts.
KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"\0\5\x16\7", "a macOS companion file (AppleDouble)", "Move it away"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Get the file with: git lfs pull"),
    (b"#!AER-DAT1", "an AEDAT 1.0 file", "Convert it to the version that is wanted"),
    (b"#!AER-DAT2", "an AEDAT 2.0 file", "Give it to the data set that wants this version, or convert it"),
    (b"#!AER-DAT3", "an AEDAT 3 file", "Give it to the data set that wants this version, or convert it"),
    (b"#!AER-DAT4", "an AEDAT 4.0 file", "Give it to the data set that wants this version, or convert it"),
    (b"\x93NUMPY", "a NumPy array (.npy)", "Put a file of the right kind in its place"),
    (b"PK\3\4", "a zip archive (or .npz)", "Unpack it and put what it holds in its place"),
    (b"\x1f\x8b", "a gzip file", "Unpack it (gunzip) and put what it holds in its place"),
    (b"BZh", "a bzip2 file", "Unpack it and put what it holds in its place"),
    (b"\xfd7zXZ", "an xz file", "Unpack it and put what it holds in its place"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it and put what it holds in its place"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Put a file of the right kind in its place"),
    (b"\x89PNG", "a PNG image", "Put a file of the right kind in its place"),
    (b"\xff\xd8\xff", "a JPEG image", "Put a file of the right kind in its place"),
    (b"<!doctype", "a web page", "The download failed: fetch the file again"),
    (b"<html", "a web page", "The download failed: fetch the file again"),
    (b"<?xml", "an XML file", "The download failed, or the name is wrong: put the right file in its place"),
)


def kind_of(path: Path) -> tuple[str, str] | None:
    """What a file is by its first bytes, and what to do about it; None if they say nothing."""
    try:
        head = read_head(path)
    except DataError:
        return None
    start = head.lstrip()[:32].lower()
    for magic, what, advice in KINDS:
        if head.startswith(magic) or (magic[:1] == b"<" and start.startswith(magic)):
            return what, advice
    if len(head) >= 8 and not any(head):
        return "filled with zeros", "Its bytes never reached the disk: unpack or copy it again"
    return None


def damaged(path: Path, why: str, wanted: str = "") -> str:
    """The one message for a raw file that cannot be read; `why` says where it breaks.

    If its first bytes show another kind than `wanted`, it may be whole, and the message says what it is instead.
    """
    if wanted and kind_of(path) is not None:
        return not_this(path, wanted)
    return (
        f"{path}: {why}. The file is damaged or cut off: put a whole copy in its place (unpack its archive again, or"
        " write your own file anew)."
    )


def not_this(path: Path, wanted: str) -> str:
    """The one message for a file that is not `wanted`: it may be whole, so nothing says that it should go."""
    if (kind := kind_of(path)) is None:
        return f"{path}: is not {wanted}. It is damaged, or of another kind: put {wanted} in its place."
    what, advice = kind
    return f"{path}: is {what}, but {wanted} is wanted. {advice}."


def unreadable(path: Path, error: OSError) -> str:
    """The one message for a file or folder that the system does not let us read."""
    reason = error.strerror or str(error)
    if error.errno == errno.ELOOP:
        return f"{path}: is a link that leads back to itself. Remove it, or make it lead to the file."
    if isinstance(error, PermissionError):
        return f"{path}: cannot be read ({reason}). Give yourself the right to read it (chmod u+rX), or move it away."
    return f"{path}: cannot be read ({reason}). Check the disk and the path, or move it away."


def _not_a_file(path: Path, mode: int = 0) -> str:
    if path.is_symlink() and not mode:
        return (
            f"{path}: is a link to {os.readlink(path)}, where nothing is. Put the file there (mount its disk), or"
            " remove the link."
        )
    if not mode:
        return f"{path}: is no longer there. Start again when nothing else changes the folder."
    what = next(
        word
        for is_kind, word in (
            (stat.S_ISDIR, "a folder"),
            (stat.S_ISFIFO, "a pipe (FIFO)"),
            (stat.S_ISSOCK, "a socket"),
            (lambda _: True, "a device"),
        )
        if is_kind(mode)
    )
    return f"{path}: is {what}, but a file is wanted there. Move it away."


def missing_files(name: str, wanted: str, root: Path, fetchable: bool = True) -> str:
    """The one message for raw files that are not there."""
    return (
        f"dataset={name}: found no {wanted} under {root}. Put the unpacked data set there, or set dataset.root"
        " (or SNNEXP_DATA) to the folder that holds it"
        + (f", or fetch it with: {_prepare(name, root)}" if fetchable else ".")
    )


def _prepare(name: str, root: Path) -> str:
    """The command that fetches a data set to where it was looked for; `name` may have other keys behind it."""
    usual = Path(os.environ.get("SNNEXP_DATA", "data"))
    there = [] if root in (usual, start_folder() / usual) else [f"dataset.root={root}"]
    return command_line(["task=prepare", f"dataset={name}", *there], printed=True)


def some(names: list[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def count_of(items: list[str], word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{len(items):,} {word}{'' if len(items) == 1 else 's'}"
