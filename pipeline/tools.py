"""The verbs beside the pipeline, one family:

    pipeline-tools show | report | trace | why | diff | doctor | export | push | cache


`python -m pipeline.tools` is the same; `python -m scripts.show` and `python -m scripts.cache` are doors to two of them.
A verb is the function of the same name in the module of the same name: of `export` in the folder `exports`, of `cache` in
`cache.py`; `why` of two datasets is in `diff.py`.
"""

if __name__ == "__main__":  # before all that takes its time
    from pipeline import calm

    calm.begin()

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import cache, cli, console, engine, manifests, why
from pipeline.bucket import is_address
from pipeline.errors import ConfigError, IntegrityError, PipelineError, ResourceError
from pipeline.exports import FORMATS
from pipeline.files import compare
from pipeline.split import ordered

STATES = {"ok": "green", "look": "yellow", "bad": "bold red"}  # of a finding of `doctor`
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def main(group: str | None = None, arguments: list[str] | None = None) -> None:
    """The console script. Ends the process with the exit codes of `pipeline.errors`."""
    given = sys.argv[1:] if arguments is None else arguments
    console.setup()
    try:
        options = _parser(group).parse_args([group, *given] if group else given)
        with engine.signals():
            options.verb(options)
    except Exception as error:
        sys.exit(cli.complain(cli.as_ours(error, bug=True)))


class _Parser(argparse.ArgumentParser):
    """One whose help ends as all that is said on stdout."""

    def print_help(self, file: Any = None) -> None:
        console.say(self.format_help(), end="")


def _parser(group: str | None) -> argparse.ArgumentParser:
    name = f"python -m scripts.{group}" if group else "pipeline-tools"
    parser = _Parser(prog="pipeline-tools", description="Look at what the pipeline made and keeps.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(verb: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(verb, help=text, description=text, prog=name if group == verb else None)
        added.set_defaults(verb=function)
        return added

    shown = add("show", _show, "a row of a dataset, a document, a token, or the rows of a stage, as a person reads them")
    shown.add_argument("dataset", type=_folder)
    what = shown.add_mutually_exclusive_group()
    what.add_argument("--row", type=int, help="a row; negative: from the end; by default the first")
    what.add_argument("--document", type=int, help="a document: where it came from, its text, its tokens, its rows")
    what.add_argument("--token", help="a token by its string or its ID: where it stands")
    what.add_argument("--stage", help="what a stage keeps in the cache, as in load, selection or window: counts, first rows")
    _add_cache(shown)
    made = add("report", _report, "write report.html, the page of a dataset, and sweep.html where jobs of a sweep lie in it")
    made.add_argument("dataset", type=_folder)
    traced = add("trace", _trace, "from a row or a training step to file and bytes, or from a phrase or a file to the rows")
    traced.add_argument("dataset", type=_folder)
    what = traced.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", type=int, help="a row of the dataset")
    what.add_argument("--step", type=int, help="a step of training, from 0 within its epoch; needs --batch-size")
    what.add_argument("--phrase", help="a piece of text: where it stands, and in which rows")
    what.add_argument("--file", help="an input file: its documents and their rows")
    traced.add_argument("--at", type=int, help="with --file: the byte (Parquet: the row) that is meant")
    for flag, default, text in (
        ("batch-size", None, "the loader's batch_size: rows that one process gets at a step"),
        ("rank", 0, "which of the processes that train together is meant, from 0"),
        ("world-size", 1, "how many processes train together; at a step each gets a batch of its own"),
        ("seed", 0, "the loader's seed, which decides the order of the rows"),
        ("epoch", 0, "which time through the dataset, from 0; each has another order"),
    ):
        told = "" if default is None else f"; by default {default}"
        traced.add_argument(f"--{flag}", type=int, default=default, help=f"with --step: {text}{told}")
    traced.add_argument("--no-shuffle", action="store_true", help="with --step: the loader had shuffle=False")
    traced.add_argument("--json", action="store_true", help="one JSON object a line")
    why = add("why", _why, "what separates two datasets, or two cache entries, or the newest entries from those before")
    why.add_argument("which", nargs="*", help="one or two folders of datasets, or keys or their beginnings; none: all stages")
    _add_cache(why)
    differing = add("diff", _diff, "the rows of two datasets: which were added, removed, changed, and where the stages part")
    differing.add_argument("old", type=_folder)
    differing.add_argument("new", type=_folder)
    differing.add_argument("--json", action="store_true", help="one JSON object; of datasets with splits one of each split's")
    checked = add("doctor", _doctor, "is this machine fit for the pipeline? Ends with 5 where something must be mended")
    checked.add_argument("--outputs", type=Path, default=Path("outputs"), help="where datasets go, by default outputs")
    checked.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_cache(checked)
    exported = add("export", _export, "a dataset in the format of somebody else's training job")
    exported.add_argument("dataset", type=_folder)
    exported.add_argument("--to", required=True, choices=FORMATS, help="the format")
    exported.add_argument("--out", type=Path, help="the folder to write; by default that of the dataset with -FORMAT behind it")
    pushed = add("push", _push, "a dataset to the Hugging Face Hub, with its card; the token is that in HF_TOKEN")
    pushed.add_argument("dataset", type=_folder)
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


def _folder(text: str) -> Path:
    """The folder of a dataset. Raises ConfigError on the address of one in a store."""
    if is_address(text):
        raise ConfigError(
            f'{text!r} lies in a store, and this reads a folder: copy there what its manifest.json names as "at", as '
            f"`aws s3 cp --recursive {text.rstrip('/')}/AT FOLDER` does."
        )
    return Path(text)


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


LOADER = {"batch_size": None, "rank": 0, "world_size": 1, "seed": 0, "epoch": 0, "no_shuffle": False}  # by default


def _refuse_idle(options: argparse.Namespace) -> None:
    """Raise ConfigError naming the options of `trace` that would change nothing."""
    idle = ["at"] if options.file is None and options.at is not None else []
    idle += [name for name, usual in LOADER.items() if options.step is None and getattr(options, name) != usual]
    if idle:
        named = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise ConfigError(f"trace: {named} would change nothing: --at goes with --file, what tells of the loader with --step.")


def _trace(options: argparse.Namespace) -> None:
    from pipeline import trace

    _refuse_idle(options)
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
            _say(f"row {dataset.place(row):,}")
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


def _say(head: str, rest: str = "", between: str = "\n", style: str = "bold") -> None:
    """Lines without control characters, their head in a style where stdout is a terminal."""
    from rich.text import Text

    rest = between * bool(head and rest) + _safe(rest)
    console.draw(Text.assemble((console.printable(head), style), rest))


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
    folders = [Path(name) for name in options.which if manifests.read(Path(name) / "manifest.json") is not None]
    if len(folders) == 2:
        from pipeline import diff

        split, *pair = _pairs(*folders)[0]  # their making is that of all splits
        _say(f"split {split} of both" if split else "", "\n".join(diff.why(*pair)) or "no difference")
        return
    opened = _open(options)
    entries = [entry for entry in map(_with_identity, opened.entries()) if entry is not None]
    known = {entry.key: entry for entry in entries}
    chosen = [_chosen(entries, name, options.dir) for name in options.which]
    if len(chosen) == 2:
        keyed = next(found[0] for name, found in zip(options.which, chosen, strict=True) if Path(name) not in folders)
        old, new = (_only(found, name, keyed.stage) for name, found in zip(options.which, chosen, strict=True))
        said = ["the same entry"] if old.key == new.key else why.explain(old.identity, new, known)
        _say(f"{keyed.stage} {old.key} and {new.key}", "\n".join(said) or "no difference")
        return
    newest = {entry.stage: entry for entry in sorted(entries, key=cache.Entry.last_use)}
    for entry in chosen[0] if chosen else newest.values():
        _say(
            f"{entry.stage} {entry.key}:",
            console.printable("; ".join(why.why(entry, known))) or "the only one of its stage",
            " ",
        )


def _chosen(entries: list[cache.Entry], name: str, place: Path) -> list[cache.Entry]:
    """The entry of a key or its beginning, or those that a dataset was made from, its splits too.

    Raises ConfigError where there is none, or a beginning fits several.
    """
    folder = Path(name)
    if (manifest := manifests.read(folder / "manifest.json")) is not None:
        parts = [manifest, *(manifests.read(folder / split / "manifest.json") or {} for split in manifest.get("splits", ()))]
        keys = {key for part in parts for key in part.get("keys", {}).values()}
        found = [entry for entry in entries if entry.key in keys]
        if not found:
            raise ConfigError(f"nothing of {name!r} is in the cache {str(place)!r} (any more): set --dir.")
        return found
    found = [entry for entry in entries if f"{entry.stage}/{entry.key}".startswith(name) or entry.key.startswith(name)]
    if not found:
        raise ConfigError(
            f"{name!r} is no finished dataset, and begins no key in the cache {str(place)!r}: `cache ls` lists them."
        )
    if len(found) > 1:
        raise ConfigError(f"{name!r} fits {len(found)} entries: give more of the key, as `cache ls` shows it.")
    return found


def _only(found: list[cache.Entry], name: str, stage: str) -> cache.Entry:
    """Of what a name stands for the entry of a stage. Raises ConfigError where there is none, or several."""
    own = [entry for entry in found if entry.stage == stage]
    if not own:
        raise ConfigError(f"{name!r} has no entry of the stage {stage} in the cache, as the other has.")
    if len(own) > 1:
        keys = " or ".join(entry.key[:8] for entry in own)
        raise ConfigError(f"{name!r} has {len(own)} entries of the stage {stage}: give {keys} instead.")
    return own[0]


def _pairs(old: Path, new: Path) -> list[tuple[str, Path, Path]]:
    """Two datasets to compare, or each split that both hold, by name. Raises ConfigError where they share none."""
    splits = [(manifests.read(folder / "manifest.json") or {}).get("splits", {}) for folder in (old, new)]
    if not all(splits):
        return [("", old, new)]
    if not (shared := [split for split, _ in ordered(splits[0]) if split in splits[1]]):
        raise ConfigError(f"{str(old)!r} and {str(new)!r} have no split in common.")
    return [(split, old / split, new / split) for split in shared]


def _diff(options: argparse.Namespace) -> None:
    from pipeline.diff import diff

    found = {split: diff(*pair) for split, *pair in _pairs(options.old, options.new)}
    if options.json:
        told = {split: dataclasses.asdict(one) for split, one in found.items()}
        console.say(json.dumps(told.get("", told)))
        return
    for split, one in found.items():
        _say(f"{split}: " * bool(split) + f"{one.rows[0]:,} and {one.rows[1]:,} rows, {one.same:,} in both")
        for kind, count, style in (
            ("changed", one.changed, "yellow"),
            ("removed", one.removed, "red"),
            ("added", one.added, "green"),
        ):
            numbers = ", ".join(f"{row:,}" for row in one.first[kind]) + ", …" * (count > len(one.first[kind]))
            _say(f"{kind:<8}", f"{count:,}" + f"  row {numbers}" * bool(count), " ", style if count else "")
        console.say(f"they part at {one.parts_at}" if one.parts_at else "made from the same: no stage differs")


def _doctor(options: argparse.Namespace) -> None:
    from pipeline.doctor import doctor

    bad = 0
    with contextlib.closing(doctor(options.dir, options.outputs)) as findings:
        for finding in findings:
            bad += finding.state == "bad"
            if options.json:
                console.say(json.dumps(dataclasses.asdict(finding)))
                continue
            said = console.printable(f"{finding.said}: {finding.advice}" if finding.advice else finding.said)
            _say(f"{finding.state:<5}", f"{finding.what:<10} {said}", " ", STATES.get(finding.state, ""))
    if bad:
        raise ResourceError(f"{console.counted(bad, 'finding')} to mend before a run.")


def _export(options: argparse.Namespace) -> None:
    from pipeline.exports import export

    folder = export(options.dataset, options.to, options.out)
    console.say(console.printable(os.path.relpath(folder)))


def _push(options: argparse.Namespace) -> None:
    from pipeline.push import push

    console.say(push(options.dataset, options.repo, options.public))


def _with_identity(entry: cache.Entry) -> cache.Entry | None:
    try:
        content = entry.manifest()
    except PipelineError:
        return None
    return cache.Entry(entry.cache, entry.stage, entry.key, content["identity"]) if content else None


def _verify(options: argparse.Namespace) -> None:
    from pipeline import bucket, housekeeping

    checked: Iterator[cache.Checked]
    mend = (
        "run the pipeline again: it sets damaged files aside and computes only them (of a stage that it does not read, "
        "remove the folder)"
    )
    if options.dataset:
        mend = "make it again, with the command that made it: what is whole in the cache is not computed again"
        checked = bucket.verify(options.dataset) if is_address(options.dataset) else _check_dataset(options.dataset)
    elif is_address(options.dir):
        checked = housekeeping.verify(options.dir, engine.cores())
    else:
        checked = _open(options).verify(engine.cores())
    files, damaged, by_hand = 0, 0, 0
    for path, problem in checked:
        files += 1
        if problem is not None:
            damaged += 1
            by_hand += isinstance(problem, PipelineError)
            console.say(f"{console.printable(str(path))}: {console.printable(str(problem))}")
    console.say(f"{damaged} of {files} files damaged")
    advice = [mend] if damaged > by_hand else []
    advice += ["do what the lines above say: no run can do it"] if by_hand else []
    if advice:
        raise IntegrityError(f"{'; and '.join(advice)}.")


def _check_dataset(folder: Path) -> Iterator[cache.Checked]:
    manifest = manifests.read(folder / "manifest.json") or manifests.read(folder / "export.json", export=True)
    if manifest is None:
        raise IntegrityError(
            f"{str(folder)!r} has no manifest.json that is whole: it is not a finished dataset of this pipeline."
        )
    for name, note in manifest["files"].items():
        try:
            yield folder / name, compare(folder / name, note)[0]
        except PipelineError as error:
            yield folder / name, error


def _gc(options: argparse.Namespace) -> None:
    if is_address(options.dir):
        from pipeline import housekeeping

        gone = housekeeping.gc(options.dir, options.max_size)
        for name, size in gone.items():
            console.say(f"removed {console.printable(name)} ({console.size(size)})")
        console.say(f"{console.size(sum(gone.values()))} freed")
        return
    opened = _open(options)
    try:
        removed = opened.gc(options.max_size)
    finally:
        opened.close()
    for path, size in removed.items():
        console.say(f"removed {console.printable(os.path.relpath(path, options.dir))} ({console.size(size)})")
    console.say(f"{console.size(sum(removed.values()))} freed")


if __name__ == "__main__":
    main()
