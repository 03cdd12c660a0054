"""The verbs beside the pipeline, one family: `pipeline-tools show | report | trace | why | diff | doctor | cache …`.

`python -m pipeline.tools` is the same; `python -m scripts.show` and `python -m scripts.cache` are doors to two of them.
A verb is the function of the same name in the module of the same name (`cache.py` for those of the cache).
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import cache, cli, console, engine
from pipeline.bucket import is_address
from pipeline.errors import ConfigError, IntegrityError, PipelineError, ResourceError
from pipeline.exports import FORMATS
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
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(verb: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(verb, help=text, description=text, prog=name if group == verb else None)
        added.set_defaults(verb=function)
        return added

    shown = add("show", _show, "a row of a dataset, a document, a token, or the rows of a stage, as a person reads them")
    shown.add_argument("dataset", type=Path)
    what = shown.add_mutually_exclusive_group()
    what.add_argument("--row", type=int, help="a row; negative: from the end; by default the first")
    what.add_argument("--document", type=int, help="a document: where it came from, its text, its tokens, its rows")
    what.add_argument("--token", help="a token by its string or its ID: where it stands")
    what.add_argument("--stage", help="what a stage keeps in the cache, as in load, selection or window: counts, first rows")
    _add_cache(shown)
    made = add("report", _report, "write report.html, the page of a dataset, and sweep.html where jobs of a sweep lie in it")
    made.add_argument("dataset", type=Path)
    traced = add("trace", _trace, "from a row or a training step to file and bytes, or from a phrase or a file to the rows")
    traced.add_argument("dataset", type=Path)
    what = traced.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", type=int, help="a row of the dataset")
    what.add_argument("--step", type=int, help="a step of training, from 0 within its epoch; needs --batch-size")
    what.add_argument("--phrase", help="a piece of text: where it stands, and in which rows")
    what.add_argument("--file", help="an input file: its documents and their rows")
    traced.add_argument("--at", type=int, help="with --file: the byte (Parquet: the row) that is meant")
    for flag, default in (("batch-size", None), ("rank", 0), ("world-size", 1), ("seed", 0), ("epoch", 0)):
        traced.add_argument(f"--{flag}", type=int, default=default, help=f"with --step: {flag} of the loader")
    traced.add_argument("--no-shuffle", action="store_true", help="with --step: the loader's shuffle was off")
    traced.add_argument("--json", action="store_true", help="one JSON object a line")
    why = add("why", _why, "what separates two datasets, or two cache entries, or the newest entries from those before")
    why.add_argument("which", nargs="*", help="one or two folders of datasets, or keys or their beginnings; none: all stages")
    _add_cache(why)
    differing = add("diff", _diff, "the rows of two datasets: which were added, removed, changed, and where the stages part")
    differing.add_argument("old", type=Path)
    differing.add_argument("new", type=Path)
    differing.add_argument("--json", action="store_true", help="one JSON object")
    checked = add("doctor", _doctor, "is this machine fit for the pipeline? Ends with 5 where something must be mended")
    checked.add_argument("--outputs", type=Path, default=Path("outputs"), help="where datasets go, by default outputs")
    checked.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_cache(checked)
    exported = add("export", _export, "a dataset in the format of somebody else's training job")
    exported.add_argument("dataset", type=Path)
    exported.add_argument("--to", required=True, choices=FORMATS, help="the format")
    exported.add_argument("--out", type=Path, help="the folder to write; by default that of the dataset with -FORMAT behind it")
    pushed = add("push", _push, "a dataset to the Hugging Face Hub, with its card; the token is that in HF_TOKEN")
    pushed.add_argument("dataset", type=Path)
    pushed.add_argument("repo", help="user/name or organisation/name")
    pushed.add_argument("--public", action="store_true", help="where the repository is new, let everyone see it")
    caches = add("cache", None, "what finished stages there are")
    caches.add_argument(
        "--dir",
        type=_place,
        default=Path("data/cache"),
        help="cache.dir, by default data/cache, or cache.remote: s3://bucket/cache",
    )
    inner = caches.add_subparsers(required=True, metavar="VERB")
    inner.add_parser("ls", help="every entry: stage, key, rows, bytes, age").set_defaults(verb=_ls)
    verify = inner.add_parser("verify", help="hash every file of the cache, or of a finished dataset or an export")
    verify.add_argument("dataset", nargs="?", type=_place, help="a finished dataset, or an export, instead of the cache")
    verify.set_defaults(verb=_verify)
    gc = inner.add_parser("gc", help="remove the longest unused entries")
    gc.add_argument("--max-size", required=True, type=_bytes, help="what may stay, such as 10GB")
    gc.set_defaults(verb=_gc)
    return parser


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, default=Path("data/cache"), help="the cache (cache.dir), by default data/cache")


def _place(text: str) -> Path | str:
    """A folder, or the address of a place in a store."""
    return text.rstrip("/") if is_address(text) else Path(text)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?b?)", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 10GB")
    return int(float(match[1]) * UNITS[match[2] if match[2].endswith("b") or not match[2] else match[2] + "b"])


def _show(options: argparse.Namespace) -> None:
    from pipeline.show import show

    console.draw(show(options.dataset, options.row, options.document, options.token, options.stage, cache_dir=options.dir))


def _report(options: argparse.Namespace) -> None:
    from pipeline.report import report

    for path in report(options.dataset):
        console.say(console.printable(str(path)))


def _trace(options: argparse.Namespace) -> None:
    from pipeline import trace

    dataset = trace.Finished(options.dataset)
    if options.phrase is not None or options.file is not None:
        places = (
            trace.find_file(dataset, options.file, options.at)
            if options.file is not None
            else trace.find(dataset, options.phrase)
        )
        count = 0
        for place in places:
            console.say(_line(dataclasses.asdict(place)) if options.json else _safe(trace.told(dataset, place)))
            count += 1
        if not options.json:
            more = ", and there may be more" if count == trace.FOUND else ""
            console.say(f"{console.counted(count, 'place')}{more}")
        return
    rows = [options.row]
    if options.step is not None:
        if options.batch_size is None:
            raise ConfigError("trace: --step needs --batch-size, that of the loader.")
        rows = trace.rows_of_step(
            options.dataset, options.step, options.batch_size, options.rank, options.world_size, options.seed,
            options.epoch, not options.no_shuffle,
        )  # fmt: skip
    for row in rows:
        pieces = trace.trace(dataset, row)
        if not options.json:
            console.say(f"row {dataset.place(row):,}")
        for piece in pieces:
            if options.json:
                console.say(_line({"row": dataset.place(row), **dataclasses.asdict(piece)}))
            else:
                console.say(_safe(trace.told(dataset, piece), "  "))


def _line(value: dict[str, Any]) -> str:
    """A value as one line of JSON; a range as its first number and the one behind its last."""
    return json.dumps(value, default=lambda inner: [inner.start, inner.stop])


def _safe(text: str, indent: str = "") -> str:
    """Lines without control characters."""
    return "\n".join(indent + console.printable(line) for line in text.split("\n"))


def _open(options: argparse.Namespace) -> cache.Cache:
    if not options.dir.is_dir():
        raise ConfigError(f"there is no cache at {str(options.dir)!r}: set --dir.")
    return cache.Cache.open(options.dir)


def _ls(options: argparse.Namespace) -> None:
    from pipeline import housekeeping

    rows: list[list[object]] = []
    for entry in housekeeping.ls(options.dir) if is_address(options.dir) else _open(options).ls():
        used, state = f"{console.duration(time.time() - entry.used)} ago", "" if entry.whole else "unfinished"
        rows.append([entry.stage, entry.key, entry.rows or "", console.size(entry.bytes), used, state])
    console.table(["stage", "key", "rows", "bytes", "used", ""], rows)


def _why(options: argparse.Namespace) -> None:
    if len(options.which) > 2:
        raise ConfigError("why: two folders or keys at most.")
    folders = [Path(name) for name in options.which if (Path(name) / "manifest.json").exists()]
    if len(folders) == 2:
        from pipeline.diff import why

        console.say(_safe("\n".join(why(*folders))) or "no difference")
        return
    opened = _open(options)
    entries = [entry for entry in map(_with_identity, opened.entries()) if entry is not None]
    known = {entry.key: entry for entry in entries}
    chosen = [entry for name in options.which for entry in _chosen(entries, name)]
    if len(options.which) == 2:
        console.say(_safe("\n".join(cache.explain(chosen[0].identity, chosen[-1], known))) or "no difference")
        return
    newest = {entry.stage: entry for entry in sorted(entries, key=cache.Entry.last_use)}
    for entry in chosen or newest.values():
        reasons = cache.why(entry, known)
        console.say(console.printable(f"{entry.stage} {entry.key}: {'; '.join(reasons) or 'the only one of its stage'}"))


def _chosen(entries: list[cache.Entry], name: str) -> list[cache.Entry]:
    """The entry of a key or its beginning, or those that a dataset was made from."""
    if (manifest := unseal(Path(name) / "manifest.json")) is None:
        return [_one(entries, name)]
    keys = set(manifest["keys"].values())
    return [entry for entry in entries if entry.key in keys]


def _diff(options: argparse.Namespace) -> None:
    from pipeline.diff import diff

    found = diff(options.old, options.new)
    if options.json:
        console.say(json.dumps(dataclasses.asdict(found)))
        return
    console.say(f"{found.rows[0]:,} and {found.rows[1]:,} rows, {found.same:,} in both")
    for kind, count in (("changed", found.changed), ("removed", found.removed), ("added", found.added)):
        numbers = ", ".join(f"{row:,}" for row in found.first[kind]) if count else ""
        console.say(
            f"{kind:<8} {count:,}" + (f"  row {numbers}{', …' if count > len(found.first[kind]) else ''}" if count else "")
        )
    console.say(f"they part at {found.parts_at}" if found.parts_at else "made from the same: no stage differs")


def _doctor(options: argparse.Namespace) -> None:
    from pipeline.doctor import doctor

    bad = 0
    for finding in doctor(options.dir, options.outputs):
        bad += finding.state == "bad"
        said = console.printable(finding.said) + (f": {console.printable(finding.advice)}" if finding.advice else "")
        console.say(
            json.dumps(dataclasses.asdict(finding)) if options.json else f"{finding.state:<5} {finding.what:<10} {said}"
        )
    if bad:
        raise ResourceError(f"{console.counted(bad, 'finding')} to mend before a run.")


def _export(options: argparse.Namespace) -> None:
    from pipeline.exports import export

    with engine.signals():
        folder = export(options.dataset, options.to, options.out)
    console.say(console.printable(os.path.relpath(folder)))


def _push(options: argparse.Namespace) -> None:
    from pipeline.push import push

    with engine.signals():
        console.say(push(options.dataset, options.repo, options.public))


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
    from pipeline import bucket, housekeeping

    checked: Iterator[tuple[Path | str, str | None]]
    if options.dataset:
        checked = bucket.verify(options.dataset) if is_address(options.dataset) else _check_dataset(options.dataset)
    elif is_address(options.dir):
        checked = housekeeping.verify(options.dir, engine.cores())
    else:
        checked = _open(options).verify(engine.cores())
    files, damaged = 0, 0
    for path, problem in checked:
        files += 1
        if problem is not None:
            damaged += 1
            print(f"{console.printable(str(path))}: {console.printable(problem)}")
    print(f"{damaged} of {files} files damaged")
    if damaged:
        raise IntegrityError("run the pipeline again: it sets damaged files aside and computes only them.")


def _check_dataset(folder: Path) -> Iterator[tuple[Path | str, str | None]]:
    manifest = unseal(folder / "manifest.json") or unseal(folder / "export.json")
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
    if is_address(options.dir):
        from pipeline import housekeeping

        gone = housekeeping.gc(options.dir, options.max_size)
        for name, size in gone.items():
            print(f"removed {console.printable(name)} ({console.size(size)})")
        print(f"{console.size(sum(gone.values()))} freed")
        return
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
