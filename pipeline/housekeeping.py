"""Looking after a cache in a store, by listing: `pipeline-tools cache ls | verify | gc --dir s3://bucket/cache`.

An entry is what has the mark that a run puts when it names one, see remote.py. Where none is, the address may be mistyped:
ConfigError, and nothing is put there. There are no processes to ask whether they live. An entry is in use where something
was put into it within a DAY: a file, or the mark again. The store's clock alone counts, as the listing gives it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline import engine
from pipeline.cache import KEY, SET_ASIDE, Cache, Checked, Entry, Listed
from pipeline.config import Engine
from pipeline.errors import ConfigError, PipelineError
from pipeline.remote import DAY, USED, Shelf, Store


def _shelves(url: str, there: dict[str, tuple[int, float]]) -> dict[Shelf, dict[str, tuple[int, float]]]:
    """Every entry that holds more than a mark of use, and what the listing says of its objects, by their names in it."""
    found: dict[Shelf, dict[str, tuple[int, float]]] = {}
    cache = Cache(Path(), "none", url)
    for name, about in there.items():
        parts = name.split("/")
        if len(parts) == 3 and KEY.fullmatch(parts[1]):
            found.setdefault(Shelf(Store(url), Entry(cache, parts[0], parts[1], {})), {})[parts[2]] = about
    ours = {shelf: objects for shelf, objects in found.items() if USED in objects}
    if not ours:
        raise ConfigError(f"there is no cache at {url!r}: set --dir.")
    return {shelf: objects for shelf, objects in ours.items() if len(objects) > 1}


def ls(url: str) -> list[Listed]:
    """What is stored, the longest unused first."""
    listed = []
    for shelf, objects in _shelves(url, Store(url).listed()).items():
        content = shelf.manifest()
        notes = content["files"].values() if content else ()
        rows = [note["counts"]["rows"] for note in notes if "rows" in note.get("counts", {})]
        size, used = sum(size for size, _ in objects.values()), max(put for _, put in objects.values())
        listed.append(Listed(shelf.entry.stage, shelf.entry.key, size, sum(rows) if rows else None, used, content is not None))
    return sorted(listed, key=lambda e: (e.used, e.stage, e.key))


def verify(url: str, workers: int = 1) -> Iterator[Checked]:
    """Hash everything that is stored; for every file its address and what is wrong with it, as `Cache.verify`."""
    checks: list[tuple[Shelf, str, int, str]] = []
    for shelf, objects in _shelves(url, Store(url).listed()).items():
        address = f"{url}/{shelf.place('manifest.json')}"
        try:
            content = shelf.manifest()
            names = list(content["files"]) if content else [n[1:-8] for n in objects if n.endswith(".receipt")]
            notes = content["files"] if content else {name: shelf.receipt(name) for name in names}
        except PipelineError as error:
            yield address, error
            continue
        if "manifest.json" in objects:
            yield address, None if content else "not as it was written"
        checks += [(shelf, name, note["bytes"], note["sha256"]) for name, note in notes.items() if note]

    def check(item: tuple[Shelf, str, int, str]) -> tuple[str, str | None]:
        shelf, name, size, sha = item
        return f"{url}/{shelf.place(name)}", differs(shelf.store, shelf.place(name), size, sha)

    yield from engine.run(Engine("threads", workers), check, checks)


def differs(store: Store, name: str, size: int, sha: str) -> str | None:
    """How an object differs from what it should be; None where it does not."""
    found = store.hash(name)
    if found == (size, sha):
        return None
    told = f"{found[0]} bytes, sha256 {found[1]}" if found else "nothing"
    return f"expected {size} bytes, sha256 {sha}, found {told}"


def gc(url: str, max_bytes: int) -> dict[str, int]:
    """Remove what is in quarantine, then the longest unused entries, until at most `max_bytes` are left.

    Never one that was used within a DAY. What killed runs were putting until then goes whatever the bound. Returns the
    names of what was removed, and its bytes.
    """
    store = Store(url)
    there = store.listed()
    shelves, now = _shelves(url, there), store.probe()
    total, removed = sum(size for size, _ in there.values()), store.sweep()
    for name in [name for name in there if re.fullmatch(f"quarantine/{SET_ASIDE.pattern}", name)]:
        if total > max_bytes:
            store.remove([name])
            removed[name] = there[name][0]
            total -= there[name][0]
    for shelf in sorted(shelves, key=lambda shelf: max(put for _, put in shelves[shelf].values())):
        objects = shelves[shelf]
        used, size = max(put for _, put in objects.values()), sum(size for size, _ in objects.values())
        if total <= max_bytes or now - used < DAY:
            break
        manifest = store.read(shelf.place("manifest.json"))
        store.remove([shelf.place("manifest.json")])  # from here on the entry is not whole for whoever asks
        if store.when(shelf.place(USED)) > used:  # who asked before has marked it before
            if manifest is not None:
                store.put(shelf.place("manifest.json"), manifest)
            continue
        store.remove([shelf.place(name) for name in objects if name not in ("manifest.json", USED)])
        store.remove([shelf.place(USED)])  # last, as it says that the rest is ours
        removed[f"{shelf.entry.stage}/{shelf.entry.key}"] = size
        total -= size
    return removed
