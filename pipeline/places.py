"""Where files lie: finding what `corpus.paths` names, and opening it.

    texts/            a folder, all that is below it          ┐
    texts/**/*.txt    a pattern                               │ in the order listed, and by sorted
    notes.jsonl       a file, or a named asset in data/, …    ├─ path within each; every file once
    https://…#sha256=…   fetched once, see `download.py`      │
    s3://bucket/x/    read in place, see `stores.py`          ┘

Hidden files and folders are not looked at and links to folders not followed, so no loop of links is. Two files with
the same content are two files.
"""

import contextlib
import errno
import fnmatch
import glob
import io
import logging
import os
import re
import stat as stat_module
from collections.abc import Iterable
from pathlib import Path

from pipeline import download, stores
from pipeline.config import Corpus
from pipeline.errors import ConfigError, from_os_error
from pipeline.files import Stat, stat_of

log = logging.getLogger(__name__)

SNAPSHOT = re.compile(r".*/datasets--([^/]+)/snapshots/([0-9a-f]{40})/(.+)", re.S)  # in the Hub's cache on this disk


# -- open -------------------------------------------------------------------------------------------------


class LocalFile(io.FileIO):
    """A file on this disk, open for reading, unbuffered."""

    def stat(self) -> Stat:
        """Its inode, size, mtime and ctime now; of the open file, whatever lies under its name by now."""
        return stat_of(os.fstat(self.fileno()))

    def pread(self, size: int, position: int) -> bytes:
        """At most `size` bytes from `position` on, fewer only at the end."""
        return os.pread(self.fileno(), size, position)

    def pread_into(self, view: memoryview, position: int) -> int:
        """Fill `view` from `position` on; returns how many bytes there were."""
        return os.preadv(self.fileno(), [view], position)


File = LocalFile | stores.StoredFile


def open_file(path: str) -> File:
    """Open a file that `find` gave, wherever it lies. Raises OSError for one on this disk, else as `StoredFile` does."""
    return stores.StoredFile(path) if stores.is_url(path) else LocalFile(path)


def file_stat(path: str) -> Stat:
    """What says that a file is unchanged: on this disk its inode, size, mtime and ctime."""
    return stores.stat(path) if stores.is_url(path) else stat_of(os.stat(path))


# -- find -------------------------------------------------------------------------------------------------


def data_dirs() -> list[Path]:
    """Where a named asset may lie, in order: ./data, the package's own, the offline mirror."""
    package = Path(__file__).resolve().parent
    places = [Path("data"), package / "data", package.parent / "data"]
    mirror = os.environ.get("PIPELINE_ASSETS")
    return places + ([Path(mirror) / "corpora"] if mirror else [])


def shown(paths: Iterable[str]) -> list[str]:
    """Paths as a manifest may show them: as they were given, or the names of assets, the same on every machine."""
    roots = [os.path.abspath(place) + os.sep for place in data_dirs()]
    names = []
    for path in paths:
        whole = path if stores.is_url(path) else os.path.abspath(path)
        root = next((root for root in roots if whole.startswith(root)), None)
        name = os.path.relpath(whole, root) if root else hub_address(whole) or path
        shown = os.fsencode(name).decode("utf-8", "surrogateescape")  # the same in every locale
        names.append(path if shown == path else shown)  # one string: of a million files they are 100 MB
    return names


def hub_address(path: str) -> str | None:
    """The address, the same on every machine, of a file in the Hub's cache; None for any other."""
    match = SNAPSHOT.fullmatch(path)
    return f"hf://datasets/{match[1].replace('--', '/')}@{match[2]}/{match[3]}" if match else None


def find(corpus: Corpus) -> dict[str, Stat]:
    """The input files and what says that they are unchanged, in order.

    Raises ConfigError where something is missing, is not a regular file or is named twice, InputError and
    IntegrityError where it lies elsewhere and cannot be had.
    """
    files: dict[str, Stat] = {}
    inodes: dict[int, str] = {}  # the first path of each, to see a file that is named twice
    twins: dict[int, list[str]] = {}  # the other paths, which are other files where the link is a hard one
    for text in corpus.paths:
        if stores.is_url(text) and not download.is_https(text):
            for url, stat in stores.find(text).items():
                if url in files:
                    raise ConfigError(f"{url!r} is named twice in corpus.paths; name it once.")
                files[url] = stat
            continue
        for path in _expand(text, corpus):
            if path in files and download.is_https(text):
                raise ConfigError(
                    f"{download.shown(text)!r} in corpus.paths has the name and the checksum of another address there, "
                    "so that both are one file; name it once."
                )
            found = _regular(path)
            files[path] = stat_of(found)
            inode = found.st_dev << 64 | found.st_ino
            if inode not in inodes:
                inodes[inode] = path
                continue
            others = twins.setdefault(inode, [inodes[inode]])
            for other in others:
                if os.path.realpath(other) == os.path.realpath(path):
                    raise ConfigError(f"{path!r} and {other!r} in corpus.paths are the same file; name it once.")
            others.append(path)
    return files


def _regular(path: str) -> os.stat_result:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise ConfigError(f"{path!r} in corpus.paths cannot be opened: {error.strerror}.") from error
    if not stat_module.S_ISREG(stat.st_mode):
        raise ConfigError(f"{path!r} in corpus.paths is not a regular file.")
    return stat


def _expand(text: str, corpus: Corpus) -> list[str]:
    """The files on this disk that one of `corpus.paths` stands for: a file, a folder, a named asset, a pattern, a download."""
    if "\0" in text:
        raise ConfigError("corpus.paths holds a NUL character.")
    if download.is_https(text):
        return [download.fetch(text, corpus)]
    path = os.path.expanduser(text)
    if not os.path.lexists(path) and not os.path.isabs(path):
        path = next((str(place / path) for place in data_dirs() if (place / path).is_file()), path)
    if os.path.isdir(path):
        if found := walk(path):
            return found
        raise ConfigError(f"the folder {path!r} in corpus.paths holds no files.")
    if os.path.lexists(path):
        return [path]
    if matches := _matches(path):
        return matches
    if corpus.url:
        return [download.asset(corpus, data_dirs())]
    raise ConfigError(_nothing(path))


def _matches(pattern: str) -> list[str]:
    """The files that a pattern matches, sorted; `**` is any number of folders, also none, and follows no links."""
    if not glob.has_magic(pattern):
        return []
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    top = "/".join(parts[:fixed]) or ("/" if fixed else ".")
    if "**" not in parts:
        places = [top if fixed else ""]
        for part in parts[fixed:]:
            places = [os.path.join(place, name) for place in places for name in _named(place, part)]  # noqa: PTH118
        return sorted(place for place in places if stat_module.S_ISREG(_mode(place)))
    if not os.path.isdir(top):
        return []
    skip = len(top.rstrip("/")) + 1
    found = (path for path in walk(top) if fits(path[skip:].split("/"), parts[fixed:]))
    return [path if fixed else path[skip:] for path in found]


def _named(folder: str, pattern: str) -> list[str]:
    """The names in a folder that a part of a pattern matches; nothing where it is none. Raises ResourceError where it cannot
    be listed: `glob` would pass over it, and lose its files in silence."""
    if not glob.has_magic(pattern):
        return [pattern]
    if not stat_module.S_ISDIR(_mode(folder or ".")):
        return []
    try:
        names = fnmatch.filter(os.listdir(folder or "."), pattern)
    except OSError as error:
        raise from_os_error(error) from error
    return [name for name in names if pattern.startswith(".") or not name.startswith(".")]


def _mode(path: str) -> int:
    """What lies at a path, behind links; 0 where they lead nowhere. Raises ResourceError where that cannot be told."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise from_os_error(error) from error


def fits(parts: list[str], pattern: list[str]) -> bool:
    """Does a path, in its parts, match a pattern? `**` is any number of folders; all else stays within one part."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        rest = pattern[1:]
        return bool(parts) and (not rest or any(fits(parts[i:], rest) for i in range(len(parts))))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and fits(parts[1:], pattern[1:])


def walk(folder: str) -> list[str]:
    """All files below a folder, sorted. Raises ResourceError where a folder in it cannot be listed."""

    def refuse(error: OSError) -> None:
        raise from_os_error(error)

    found: list[str] = []
    skipped: list[str] = []
    for top, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        skipped += [os.path.join(top, name) for name in folders if os.path.islink(os.path.join(top, name))]  # noqa: PTH118
        for name in names:
            if not name.startswith("."):
                path = os.path.join(top, name)  # noqa: PTH118
                (found if stat_module.S_ISREG(_mode(path)) else skipped).append(path)
    if skipped:
        log.warning("skipped %d links to folders and things that are no files, the first is %r", len(skipped), min(skipped))
    return sorted(found)


def _nothing(pattern: str) -> str:
    """Why a path or pattern matched nothing, with the nearest names."""
    import difflib

    folder = os.path.dirname(pattern) or "."
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    near: list[str] = []
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(os.path.basename(pattern), os.listdir(folder or "."), 3, 0.3)
    hint = f" Nearest in {folder or '.'!r}: {', '.join(map(repr, near))}." if near else ""
    return f"corpus.paths: pattern {pattern!r} (cwd {os.getcwd()!r}) matched no files.{hint}"
