"""The verbs beside the pipeline: `pipeline-tools show | cache ls | cache why | cache verify | cache gc`.

`python -m scripts.show` and `python -m scripts.cache` are doors to the same.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import cache, cli, console, engine
from pipeline.errors import ConfigError, IntegrityError, PipelineError
from pipeline.files import hash_file, unseal

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def main(group: str | None = None, arguments: list[str] | None = None) -> None:
    """The console script. Ends the process with the exit codes of `pipeline.errors`."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser(group).parse_args([group, *given] if group else given)
    console.setup()
    try:
        options.verb(options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except (PipelineError, OSError) as error:
        sys.exit(cli.complain(cli.as_ours(error)))


def _parser(group: str | None) -> argparse.ArgumentParser:
    name = f"python -m scripts.{group}" if group else "pipeline-tools"
    parser = argparse.ArgumentParser(prog="pipeline-tools", description="Look at what the pipeline made and keeps.")
    groups = parser.add_subparsers(required=True, metavar="VERB")
    shown = groups.add_parser("show", help="a row of a dataset as a person reads it", prog=name if group == "show" else None)
    shown.add_argument("dataset", type=Path)
    shown.add_argument("--row", type=int, default=0)
    shown.set_defaults(verb=_show)
    caches = groups.add_parser("cache", help="what finished stages there are", prog=name if group == "cache" else None)
    caches.add_argument("--dir", type=Path, default=Path("data/cache"), help="the cache (cache.dir), by default data/cache")
    verbs = caches.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("ls", help="every entry: stage, key, rows, bytes, age").set_defaults(verb=_ls)
    why = verbs.add_parser("why", help="what separates an entry from the nearest other one, or from a second one")
    why.add_argument("keys", nargs="*", help="one or two keys, or their beginnings; none: the newest entry of each stage")
    why.set_defaults(verb=_why)
    verify = verbs.add_parser("verify", help="hash every file of the cache, or of a finished dataset")
    verify.add_argument("dataset", nargs="?", type=Path, help="a finished dataset instead of the cache")
    verify.set_defaults(verb=_verify)
    gc = verbs.add_parser("gc", help="remove the longest unused entries")
    gc.add_argument("--max-size", required=True, type=_bytes, help="what may stay, such as 10GB")
    gc.set_defaults(verb=_gc)
    return parser


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?b?)", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 10GB")
    return int(float(match[1]) * UNITS[match[2] if match[2].endswith("b") or not match[2] else match[2] + "b"])


def _show(options: argparse.Namespace) -> None:
    from pipeline.show import show

    print(show(options.dataset, options.row))


def _open(options: argparse.Namespace) -> cache.Cache:
    if not options.dir.is_dir():
        raise ConfigError(f"there is no cache at {str(options.dir)!r}: set --dir.")
    return cache.Cache.open(options.dir)


def _ls(options: argparse.Namespace) -> None:
    rows: list[list[object]] = []
    for entry in _open(options).ls():
        used, state = f"{console.duration(time.time() - entry.used)} ago", "" if entry.whole else "unfinished"
        rows.append([entry.stage, entry.key, entry.rows or "", console.size(entry.bytes), used, state])
    console.table(["stage", "key", "rows", "bytes", "used", ""], rows)


def _why(options: argparse.Namespace) -> None:
    opened = _open(options)
    entries = [entry for entry in map(_with_identity, opened.entries()) if entry is not None]
    known = {entry.key: entry for entry in entries}
    if not options.keys:
        newest = {entry.stage: entry for entry in sorted(entries, key=cache.Entry.last_use)}
        for entry in newest.values():
            reasons = cache.why(entry, known)
            print(f"{entry.stage} {entry.key}: {'; '.join(reasons) or 'the only one of its stage'}")
        return
    chosen = [_one(entries, key) for key in options.keys]
    if len(chosen) == 1:
        print("; ".join(cache.why(chosen[0], known)) or "the only one of its stage")
    elif len(chosen) == 2:
        print("\n".join(cache.explain(chosen[0].identity, chosen[1], known)) or "no difference")
    else:
        raise ConfigError("cache why takes one key or two.")


def _with_identity(entry: cache.Entry) -> cache.Entry | None:
    try:
        content = entry.manifest()
    except PipelineError:
        return None
    return cache.Entry(entry.cache, entry.stage, entry.key, content["identity"]) if content else None


def _one(entries: list[cache.Entry], key: str) -> cache.Entry:
    found = [entry for entry in entries if f"{entry.stage}/{entry.key}".startswith(key) or entry.key.startswith(key)]
    if len(found) != 1:
        raise ConfigError(f"{key!r} fits {len(found)} entries: give more of the key, as `cache ls` shows it.")
    return found[0]


def _verify(options: argparse.Namespace) -> None:
    checked = _check_dataset(options.dataset) if options.dataset else _open(options).verify(engine.cores())
    files, damaged = 0, 0
    for path, problem in checked:
        files += 1
        if problem is not None:
            damaged += 1
            print(f"{console.printable(str(path))}: {console.printable(problem)}")
    print(f"{damaged} of {files} files damaged")
    if damaged:
        raise IntegrityError("run the pipeline again: it sets damaged files aside and computes only them.")


def _check_dataset(folder: Path) -> Iterator[tuple[Path, str | None]]:
    manifest = unseal(folder / "manifest.json")
    if manifest is None:
        raise IntegrityError(
            f"{str(folder)!r} has no manifest.json that is whole: it is not a finished dataset of this pipeline."
        )
    for name, note in manifest["files"].items():
        try:
            size, sha = hash_file(folder / name)
        except OSError as error:
            yield folder / name, str(error.strerror)
            continue
        same = (size, sha) == (note["bytes"], note["sha256"])
        yield (
            folder / name,
            None if same else f"expected {note['bytes']} bytes, sha256 {note['sha256']}, found {size} bytes, sha256 {sha}",
        )


def _gc(options: argparse.Namespace) -> None:
    opened = _open(options)
    try:
        removed = opened.gc(options.max_size)
    finally:
        opened.close()
    for path, size in removed.items():
        print(f"removed {console.printable(os.path.relpath(path, options.dir))} ({console.size(size)})")
    print(f"{console.size(sum(removed.values()))} freed")


if __name__ == "__main__":
    main()
