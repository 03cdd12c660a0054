"""What to read, cut into shards by bytes, from the input alone.

    corpus.paths ──find──▶ files ──cut──▶ parts (ranges on record borders) ──group──▶ shards

A *part* is a range of one file: bytes for text and JSONL, rows for Parquet; or all of a file, where it cannot be cut:
it is compressed, or has another format. With `corpus.archives` each member of an archive is a part and a source. A
*shard* is one unit of work: as many parts as make `corpus.shard_bytes`. The plan depends on nothing but the content
and the order of the files: neither workers nor times nor names. Each part carries the sha256 of what it is read from,
so the digest of the plan is the digest of the corpus.

Every byte is hashed once; a note in the cache remembers the digests of each list of files, and a file is hashed
again only when its inode, size, mtime or ctime is another. 200 MB take 0.1 s on two cores, then a millisecond.
"""

import codecs
import contextlib
import errno
import hashlib
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from pipeline import compression, download, places, stores
from pipeline.cache import Cache
from pipeline.config import Corpus, Split
from pipeline.console import progress
from pipeline.errors import ConfigError, InputError, IntegrityError, PipelineError, from_os_error
from pipeline.files import Stat, digest, hash_file, open_regular

log = logging.getLogger(__name__)

VERSION = 3  # of what a note remembers
LINE = re.compile(rb"\n")
BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
READ = 1 << 16  # bytes looked at in one go for a border
SPLITS = 4  # at most so many parts from one row group: each decodes the rows before its own, 2.5 times the work in all
SHARDS = 16  # of a corpus that has no more than 16 times corpus.shard_bytes
TEXT = 3  # bytes of text in a byte of a Parquet file, about: 1.8 by Snappy, 3.7 by Zstandard
LEAST = 4 << 20  # bytes of such a shard: less would cost more than it gives
MOST = 1 << 16  # shards of a corpus, about, and up to 1.6 times as many (see `_group`): beyond 1.1 TB they grow
HASHED = 16 << 20  # bytes of a Parquet file that are hashed as one, whatever its shards
LONG = 1 << 30  # bytes: hashing more than this shows its progress
FETCHES = 8  # ranges of files in a store that are hashed side by side, or more where there are more workers
CLOCK = 2  # seconds: a file changed again within the step of the file system's clock would keep its ctime

JUDGES = ("min_characters", "max_characters", "include", "exclude")  # settings that leave documents out by their text

NEVER: Stat = (0, 0, 0, 0)  # equal to that of no file
Together = Callable[[str, Callable[[Any], Any], Sequence[Any]], list[Any]]  # of (task, function, items)
Range = tuple[int, int, int, str, str]  # start, end, bytes, sha256, member of an archive or ""
FORMATS = {  # by the ending of a name, behind that of a compression
    **dict.fromkeys(("txt", "text", "md", "markdown", "rst"), "text"),
    **dict.fromkeys(("jsonl", "ndjson"), "jsonl"),
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    **dict.fromkeys(("arrow", "feather", "ipc"), "arrow"),
    **dict.fromkeys(("warc", "wet"), "warc"),
    **{name: name for name in ("json", "csv", "tsv")},  # a .json file may hold an object a line: its content tells
}
PACKED = ("gz", "zst", "zstd", "xz", "bz2", "lz4")


@dataclass(frozen=True, slots=True)
class Part:
    """A range of one source: bytes, or rows of a Parquet file; all of it where it cannot be cut."""

    source: int  # index into Plan.sources
    path: str
    start: int
    end: int
    bytes: int  # of input, uncompressed: how much work it is
    sha256: str  # of these bytes; for Parquet and members of archives, of the file
    stat: Stat  # inode, size, mtime, ctime of the file when it was hashed
    member: str = ""  # of the archive at `path`


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work."""

    index: int
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Bytes of input, uncompressed."""
        return sum(part.bytes for part in self.parts)

    def __str__(self) -> str:
        shown = [f"{part.path!r} from {part.start} to {part.end}" for part in self.parts[:3]]  # bytes, or rows of Parquet
        more = [f"{len(self.parts) - 3} more files"] if len(self.parts) > 3 else []
        return f"shard {self.index} ({', '.join(shown + more)})"


@dataclass(frozen=True, slots=True)
class Source:
    """One input file, or a member of an archive. `sha256`: the file's; where it was hashed in ranges, that of their digests."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Plan:
    """Every source and every shard, and the digest of it all."""

    sources: tuple[Source, ...]
    shards: tuple[Shard, ...]
    sections: tuple[int, ...] = ()  # where one document is cut into splits: the split of each of its parts, or split.GAP
    told: tuple[str, ...] = ()  # what of the names of files the result depends on: formats told by them, a list of rejects

    @property
    def bytes(self) -> int:
        """Bytes of input, uncompressed."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Digest of the content: equal for equal bytes in equal order, whatever the files are called, unless that is told."""
        sha = hashlib.sha256("".join(f"{told}\n" for told in self.told).encode(errors="surrogateescape"))
        for shard in self.shards:
            sha.update(b"shard\n")
            for part in shard.parts:
                sha.update(f"{part.source} {part.start} {part.end} {part.sha256}\n".encode())
        return sha.hexdigest()


def together(plans: Sequence[Plan]) -> Plan:
    """The sources and shards of the parts of a mixture end to end; the plan itself where there is one."""
    sources = tuple(source for plan in plans for source in plan.sources)
    return plans[0] if len(plans) == 1 else Plan(sources, tuple(shard for plan in plans for shard in plan.shards))


def make(
    corpus: Corpus,
    cache: Cache,
    trust_stat: bool,
    workers: int,
    splits: Split | None = None,
    words: int = 0,
    together: Together | None = None,
) -> Plan:
    """Plan a corpus: find, cut, hash, group. A corpus of one document is cut where `splits` say, with gaps of `words`.

    `together` shares out the hashing of a large one, as among the jobs of an array: `Line.together`.

    The digests of a file that its stat says is unchanged come from the cache where `trust_stat`. Raises
    ConfigError where there is nothing to read, InputError where a file changes meanwhile, and IntegrityError
    where a named asset does not have its checksum.
    """
    files = places.find(corpus)
    corpus = shared_out(corpus, files)
    borders, owners = _sections(corpus, files, splits, words)
    note = _note(corpus, cache, files, borders)
    try:
        cache.bring(note)
        known = _recall(note, files) if trust_stat else {}
        fresh = {path: stat for path, stat in files.items() if path not in known}
        known |= _measure(fresh, corpus, workers, borders, together)
        unsettled = {path for path, stat in fresh.items() if not stat[0] or time.time() - stat[3] / 1e9 < CLOCK}
    except OSError as error:
        raise from_os_error(error) from error
    if len(unsettled) < len(fresh):
        _remember(cache, note, (None if path in unsettled else (stat, known[path]) for path, stat in files.items()))
    if empty := [path for path, stat in files.items() if not stat[1]]:
        log.warning("%d of %d files are empty, the first is %r", len(empty), len(files), empty[0])
    return replace(group(corpus, files, known, unsettled), sections=tuple(owners))


def _sections(
    corpus: Corpus, files: dict[str, Stat], splits: Split | None, words: int
) -> tuple[dict[str, list[int]], list[int]]:
    """Where the one document of a corpus is cut into splits, by its path, and the split of each part; empty for any other.

    Raises ConfigError where it would have to be judged as a whole.
    """
    if splits is None or (path := cut_document(corpus, files, splits)) is None:
        return {}, []
    if rules := [f"corpus.{name}={value}" for name in JUDGES if (value := getattr(corpus, name))]:
        raise ConfigError(
            f"{', '.join(rules)}: whole documents are judged, and {path!r} is the only one, which the splits cut into parts: "
            "set it to null, or corpus.document=paragraph or line."
        )
    from pipeline import split  # which takes numpy along

    with places.open_file(path) as file:
        borders, owners = split.sections(file, files[path][1], splits, words, path)
    return {path: borders}, owners


def cut_document(corpus: Corpus, files: dict[str, Stat], splits: Split) -> str | None:
    """The one document that these splits cut, by its path; empty files beside it do not matter. None for any other corpus."""
    full = [path for path, stat in files.items() if stat[1]] if splits.by == "content" else []
    if len(full) != 1 or corpus.document != "file" or corpus.archives or not is_utf8(corpus):
        return None
    from pipeline import split  # which takes numpy along

    fits = split.names(splits) and file_format(full[0], corpus) == "text" and not packed(full[0])
    return full[0] if fits else None


def look(
    corpus: Corpus,
    files: dict[str, Stat],
    cache: Cache,
    trust_stat: bool,
    workers: int,
    most: int,
    splits: Split | None = None,
    words: int = 0,
) -> Plan | None:
    """The plan that `make` would give for `files`, and nothing is noted; None where more than `most` bytes would be hashed."""
    corpus = shared_out(corpus, files)
    borders, owners = _sections(corpus, files, splits, words)
    known = _recall(_note(corpus, cache, files, borders), files) if trust_stat else {}
    fresh = {path: stat for path, stat in files.items() if path not in known}
    if sum(stat[1] for stat in fresh.values()) > most:
        return None
    planned = group(corpus, files, known | _measure(fresh, corpus, workers, borders), set(fresh))
    return replace(planned, sections=tuple(owners))


def shared_out(corpus: Corpus, files: dict[str, Stat]) -> Corpus:
    """The corpus with shards of another size where it is small or very large.

    Smaller ones so that all workers work, up to SHARDS, of at least LEAST bytes; larger ones where there would be more
    than MOST: the plan and every manifest have a bounded length, whatever they are about.
    """
    total = sum(stat[1] for stat in files.values())
    if total < SHARDS * corpus.shard_bytes:  # then how much text there is decides, not how it is packed
        endings = {"parquet": ("",), "auto": (".parquet", ".pq")}.get(corpus.format, ())
        total += sum((TEXT - 1) * stat[1] for path, stat in files.items() if path.lower().endswith(endings))
    return replace(corpus, shard_bytes=max(min(corpus.shard_bytes, max(total // SHARDS, LEAST)), -(-total // MOST)))


def _note(corpus: Corpus, cache: Cache, files: dict[str, Stat], borders: dict[str, list[int]] | None = None) -> Path:
    """Where the digests of these files are noted."""
    settings = [VERSION, corpus.format, corpus.document, corpus.encoding, corpus.shard_bytes, corpus.sha256]
    settings += [corpus.text_column, corpus.template, corpus.metadata, corpus.archives]
    settings += list((borders or {}).values())
    sha = hashlib.sha256(digest(settings).encode())
    for path in files:
        sha.update(os.fsencode(path if stores.is_url(path) else os.path.abspath(path)) + b"\0")
    return cache.root / "sources" / f"{sha.hexdigest()[:32]}.txt"


def group(
    corpus: Corpus, files: dict[str, Stat], known: dict[str, list[Range]], unsettled: Collection[str] = frozenset()
) -> Plan:
    """The plan of `files` whose ranges are `known`, which is emptied; nobody may believe the stat of the `unsettled`."""
    sources: list[Source] = []
    parts: list[Part] = []
    for name, (path, stat) in zip(places.shown(files), files.items(), strict=True):
        ranges = known.pop(path)  # of a million files they are 300 MB: let go of them on the way
        if not ranges[0][4]:
            sources.append(Source(name, stat[1], _source_sha256(ranges, path, corpus)))
        for start, end, size, sha, member in ranges:
            if member:
                sources.append(Source(f"{name}!{member}", size, sha))
            parts.append(Part(len(sources) - 1, path, start, end, size, sha, NEVER if path in unsettled else stat, member))
    told = [source.path for source in sources] if corpus.on_bad_row == "skip" or corpus.list_dropped else []
    if corpus.format == "auto":
        told += [file_format(source.path, corpus) for source in sources]
    size = max(corpus.shard_bytes, sum(part.bytes for part in parts) // MOST)  # of what was compressed there is more
    return Plan(tuple(sources), tuple(_group(parts, size)), told=tuple(told))


# -- cut --------------------------------------------------------------------------------------------------


def is_utf8(corpus: Corpus) -> bool:
    """May the bytes of the corpus be taken as they are?"""
    return codecs.lookup(corpus.encoding).name in ("utf-8", "utf-8-sig")


def file_format(name: str, corpus: Corpus) -> str:
    """The format of a file: `corpus.format`, or with `auto` what its name says. Raises ConfigError where it says nothing."""
    if corpus.format != "auto":
        return corpus.format
    endings = os.path.basename(name).lower().split(".")[1:]
    while endings and endings[-1] in PACKED:
        endings.pop()
    if not endings or endings[-1] not in FORMATS:
        raise ConfigError(
            f"{name!r}: corpus.format=auto knows the endings {', '.join(FORMATS)}, not this one; set corpus.format=."
        )
    return FORMATS[endings[-1]]


def whole(path: str, corpus: Corpus) -> bool:
    """Must a file be read as a whole, by one worker?"""
    form = file_format(path, corpus)
    if form not in ("text", "jsonl", "parquet") or (form != "parquet" and not is_utf8(corpus)):
        return True
    return (form == "text" and corpus.document == "file") or packed(path)


def packed(path: str) -> bool:
    """Is a file compressed?"""
    with places.open_file(path) as file:
        return compression.kind(file.pread(16, 0)) is not None


def _borders(path: str, size: int, corpus: Corpus) -> list[int]:
    """Where the ranges of a file that are hashed begin, and the last one ends: 0, …, size.

    They are the parts, on record borders; for Parquet they only share out the hashing.
    """
    if corpus.archives:  # the members of one have formats of their own
        return [0, size]
    form = file_format(path, corpus)
    least = HASHED if form == "parquet" else corpus.shard_bytes
    if size <= least or whole(path, corpus):
        return [0, size]
    if form == "parquet":
        return [*range(0, size, HASHED), size]
    unit = "line" if form == "jsonl" else corpus.document
    with places.open_file(path) as file:
        return [0, *_cuts(file, size, corpus.shard_bytes, LINE if unit == "line" else BLANK_LINE), size]


def _cuts(file: places.File, size: int, step: int, separator: re.Pattern[bytes]) -> Iterator[int]:
    """Positions just behind the first separator that begins at or after each multiple of `step`."""
    position = step
    while position < size:
        file.seek(position)
        data, found = b"", None
        while not found:
            if not (piece := file.read(READ)):
                return
            data += piece
            found = separator.search(data)
            if not found:  # a separator begins with a newline: only what follows the last one can still be part of it
                done = data.rfind(b"\n") if b"\n" in data else len(data)
                position, data = position + done, data[done:]
        cut = position + found.end()
        if cut < size:
            yield cut
        position = (cut // step + 1) * step


def open_parquet(file: places.File, path: str, corpus: Corpus, dictionaries: Sequence[str] = ()) -> Any:
    """A Parquet file, read in pieces of 1 MiB, whose text column is there and holds strings.

    `dictionaries` are columns that are to be given as dictionary and indices, as they may lie there. Raises ConfigError
    on a missing column, InputError where the file is none or the column holds no strings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.columns import require_columns

    try:
        parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, read_dictionary=dictionaries)
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise InputError(f"{path!r} is not a readable Parquet file: {' '.join(str(error).split())}") from error
    require_columns(schema, path, corpus)
    return parquet


def _row_ranges(path: str, corpus: Corpus, sha: str) -> list[Range]:
    """Ranges of rows, each of at least about `corpus.shard_bytes` of text: whole row groups, or up to SPLITS of a large one.

    A piece costs the decoding of all rows before it, so a row group is cut into pieces of half as much again, or more.

    Nothing is known of the rows of a compressed file: its range is that of its bytes.
    """
    with places.open_file(path) as file:
        if compression.kind(file.pread(16, 0)):
            return [(0, size := file.stat()[1], size, sha, "")]
        parquet = open_parquet(file, path, corpus)
        from pipeline.columns import text_leaves

        metadata = parquet.metadata
        own = text_leaves(metadata, corpus)
        ranges: list[Range] = []
        start = end = size = 0
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            weight = sum(group.column(i).total_uncompressed_size for i in own)
            if size and size + weight > corpus.shard_bytes * 5 // 4:
                ranges.append((start, end, size, sha, ""))
                start, size = end, 0
            pieces = max(1, min(SPLITS, 2 * weight // (3 * corpus.shard_bytes), group.num_rows))
            for nth in range(1, pieces):
                cut = end + group.num_rows * nth // pieces
                ranges.append((start, cut, weight // pieces, sha, ""))
                start = cut
            size += weight - weight // pieces * (pieces - 1)
            end += group.num_rows
    return [*ranges, (start, end, size, sha, "")]


def _differing(error: PipelineError, path: str, fits: str) -> PipelineError:
    """The error for a Parquet file that lacks what is wanted of it, where another file has it: with both schemas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = []
    try:
        for name in (path, fits) if fits else ():
            with places.open_file(name) as file:
                schema = pq.ParquetFile(file).schema_arrow
                told.append(", ".join(f"{field.name} {field.type}" for field in list(schema)[:8]))
    except (pa.ArrowException, OSError, PipelineError):
        return error
    if len(set(told)) < 2:
        return error
    return InputError(
        f"{path!r} has another schema ({told[0]}) than {fits!r} ({told[1]}), and not what is wanted: {error} "
        "Leave it out, or make it a part of a mixture with settings of its own (corpus.parts=)."
    )


# -- hash -------------------------------------------------------------------------------------------------


def sha256_range(file: places.File, start: int, end: int) -> str:
    """sha256 of the bytes [start, end) of a file."""
    sha = hashlib.sha256()
    piece = memoryview(bytearray(min(1 << 20, end - start)))
    while start < end and (count := file.pread_into(piece[: end - start], start)):
        sha.update(piece[:count])
        start += count
    return sha.hexdigest()


def _combined(shas: list[str]) -> str:
    """One digest for a file that was hashed in ranges; its own where there was one."""
    return shas[0] if len(shas) == 1 else digest(shas)


def _source_sha256(ranges: list[Range], path: str, corpus: Corpus) -> str:
    return ranges[0][3] if file_format(path, corpus) == "parquet" else _combined([one[3] for one in ranges])


def _measure(
    files: dict[str, Stat],
    corpus: Corpus,
    workers: int,
    given: dict[str, list[int]] | None = None,
    together: Together | None = None,
) -> dict[str, list[Range]]:
    """The ranges of files, hashed in threads, with borders that are `given` or our own. Raises InputError where one changes."""
    borders = {path: (given or {}).get(path) or _borders(path, stat[1], corpus) for path, stat in files.items()}
    jobs = list(
        _jobs([(path, *edge) for path, edges in borders.items() for edge in itertools.pairwise(edges)], corpus.shard_bytes)
    )
    size = sum(stat[1] for stat in files.values())
    if together and size > LONG:
        hashed = together(f"plan-{digest([list(files.values()), jobs])[:32]}", _hash, jobs)
    else:
        hashed = []
        threads = max(workers, FETCHES) if any(map(stores.is_url, files)) else workers
        with ThreadPoolExecutor(threads) as pool, progress("plan", size) if size > LONG else nullcontext(int) as advance:
            for job, own in zip(jobs, pool.map(_hash, jobs), strict=True):
                hashed.append(own)
                advance(sum(end - start for _, start, end in job))
    measured: dict[str, list[Range]] = {}
    fits = ""  # a Parquet file with the columns that are wanted
    done = itertools.chain.from_iterable(hashed)
    for path, edges in borders.items():
        own = list(itertools.islice(done, len(edges) - 1))
        if corpus.archives and (members := _members(path, files[path][1], _combined(own), corpus)) is not None:
            measured[path] = members
        elif file_format(path, corpus) == "parquet":
            try:
                measured[path] = _row_ranges(path, corpus, _combined(own))
            except (ConfigError, InputError) as error:
                raise _differing(error, path, fits) from error
            fits = fits or path
        else:
            measured[path] = [(a, b, b - a, sha, "") for (a, b), sha in zip(itertools.pairwise(edges), own, strict=True)]
        if places.file_stat(path) != files[path]:
            raise InputError(f"{path!r} changed while it was read; run again when it is still.")
        wanted = corpus.sha256 or download.checksum(path)
        if wanted and (sha := own[0] if len(own) == 1 else hash_file(Path(path))[1]) != wanted:
            raise IntegrityError(f"{path!r} has sha256 {sha}, not {wanted}. Remove it to have it fetched again.")
    return measured


def _members(path: str, size: int, sha: str, corpus: Corpus) -> list[Range] | None:
    """The members of an archive as ranges; None where it is no archive. Raises InputError where one is unsafe."""
    from pipeline import archives

    with places.open_file(path) as file:
        if (archive := archives.open_archive(file, size, path, corpus)) is None:
            return None
        members = [(0, length, length, sha, name) for name, length in archive.members()]
    if not members:
        raise InputError(f"{path!r} is an archive without a file that could be read.")
    return members


def _jobs(ranges: list[tuple[str, int, int]], size: int) -> Iterator[list[tuple[str, int, int]]]:
    """Consecutive ranges, about `size` bytes at a time, so that a hundred thousand small files are few jobs."""
    batch: list[tuple[str, int, int]] = []
    total = 0
    for one in ranges:
        batch.append(one)
        total += one[2] - one[1]
        if total >= size:
            yield batch
            batch, total = [], 0
    yield batch


def _hash(ranges: list[tuple[str, int, int]]) -> list[str]:
    shas = []
    for path, start, end in ranges:
        with places.open_file(path) as file:
            if not end and file.pread(1, 0):
                raise ConfigError(f"{path!r} in corpus.paths is not a regular file: its size is 0, yet it holds bytes.")
            shas.append(sha256_range(file, start, end))
    return shas


def require_planned(file: places.File, part: Part, corpus: Corpus) -> None:
    """Raise InputError where what a part is read from no longer has the sha256 that was planned.

    `file` is the open file itself, not its name, under which another may lie by now. A file that only grew
    passes: the bytes of the part are what they were.
    """
    whole = bool(part.member) or file_format(part.path, corpus) == "parquet"
    sha = _file_sha256(file, part.path, corpus) if whole else sha256_range(file, part.start, part.end)
    if sha != part.sha256:
        raise InputError(f"{part.path!r} changed during the run; nothing was published from it. Run again.")


_file_shas: dict[tuple[str, Stat], str] = {}


def _file_sha256(file: places.File, path: str, corpus: Corpus) -> str:
    """The digest of a whole file. Its parts share it, so it is made once per process for a state of the file."""
    stat = file.stat()
    key = (path, stat)
    if key not in _file_shas:
        borders = _borders(path, stat[1], corpus)
        _file_shas[key] = _combined([sha256_range(file, start, end) for start, end in itertools.pairwise(borders)])
    return _file_shas[key]


# -- remember ---------------------------------------------------------------------------------------------


def _remember(cache: Cache, note: Path, measured: Iterable[tuple[Stat, list[Range]] | None]) -> None:
    """Note the ranges of each file on a line of its own, empty where they are not to be believed yet; the sha256 comes last."""
    temporary, sha = cache.tmp / note.name, hashlib.sha256()
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs the hashing
        note.parent.mkdir(parents=True, exist_ok=True)
        cache.tmp.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for one in measured:
                line = b"\n" if one is None else " ".join(_words(*one)).encode() + b"\n"
                sha.update(line)
                file.write(line)
            file.write(sha.hexdigest().encode())
        os.replace(temporary, note)
        cache.send(note)


def _words(stat: Stat, ranges: list[Range]) -> Iterator[str]:
    yield from map(str, stat)
    for *numbers, member in ranges:
        yield from map(str, numbers)
        yield quote(member, errors="surrogateescape")


def _recall(note: Path, files: dict[str, Stat]) -> dict[str, list[Range]]:
    """The ranges of the files whose stat is as it was noted."""
    known: dict[str, list[Range]] = {}
    try:
        with open(open_regular(note, links=True), "rb") as file:
            if not _as_written(file):
                log.warning("ignoring %r: not as it was written", str(note))
                return {}
            for (path, stat), line in zip(files.items(), file, strict=False):
                fields = line.decode().rstrip("\n").split(" ")
                if fields[:4] == [str(number) for number in stat]:
                    groups = zip(*(fields[4 + i :: 5] for i in range(5)), strict=True)
                    known[path] = [
                        (int(start), int(end), int(size), sha, unquote(member, errors="surrogateescape"))
                        for start, end, size, sha, member in groups
                    ]
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no regular file
        return {}
    return known


def _as_written(file: BinaryIO) -> bool:
    """Does a file end with the sha256 of what stands before? It is then at its beginning again."""
    left, sha = max(0, file.seek(0, os.SEEK_END) - 64), hashlib.sha256()
    file.seek(0)
    while left and (piece := file.read(min(left, 1 << 20))):
        sha.update(piece)
        left -= len(piece)
    noted = file.read()
    file.seek(0)
    return noted == sha.hexdigest().encode()


# -- group ------------------------------------------------------------------------------------------------


def _group(parts: Iterable[Part], size: int) -> Iterator[Shard]:
    """Consecutive parts, as many as make `size` bytes; a quarter more rather than a small rest. So two shards that follow one
    another have more than that together, and there are at most 1.6 times as many as the bytes fill.

    The members of one archive stay together: most can only be read from front to back.
    """
    waiting: list[Part] = []
    index = total = 0
    for part in parts:
        together = bool(waiting and part.member) and part.path == waiting[-1].path
        if waiting and not together and total + part.bytes > size * 5 // 4:
            yield Shard(index, tuple(waiting))
            waiting, total, index = [], 0, index + 1
        waiting.append(part)
        total += part.bytes
    if waiting:
        yield Shard(index, tuple(waiting))
