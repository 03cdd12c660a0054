"""The key of each stage: everything that can change its bytes, and nothing else.

    load ─▶ tokenizer            trained kinds only
    load, tokenizer ─▶ tokenize ─▶ encode ─▶ (arrange) ─▶ window ─▶ embed
    load ─▶ fingerprint ─▶ selection ─▶ tokenizer, arrange       where documents are chosen
                           selection ─▶ listing                  where copies are dropped

Each function names an entry by the settings of its stage and the keys of the stages before it. `name` is `Line.entry`,
which leases what it names, or, where nothing is to be computed, something that does not.
"""

from collections.abc import Callable, Sequence

from pipeline import arrange, backends, corpus, embedding, fingerprint, selection, split, tokenizer, vocabulary, window
from pipeline import config as configs
from pipeline.cache import Entry
from pipeline.files import digest

Name = Callable[..., Entry]  # of (stage, **identity): Line.entry, or what names an entry without leasing it


def upstream(*found: Entry | Sequence[Entry] | None) -> dict[str, str]:
    """The keys of what a stage reads, by stage; those of the parts of a mixture by stage and number."""
    keys: dict[str, str] = {}
    for one in found:
        several = [] if one is None else [one] if isinstance(one, Entry) else one
        keys |= {entry.stage if len(several) == 1 else f"{entry.stage} {n}": entry.key for n, entry in enumerate(several)}
    return keys


def load_entry(name: Name, config: configs.Config, sha256: str) -> Entry:
    """The entry of `load` for a corpus with this digest."""
    return name("load", version=corpus.VERSION, corpus=corpus.identity(config.corpus), input=sha256)


def fingerprint_entry(name: Name, config: configs.Config, load: Entry) -> Entry:
    """The entry of `fingerprint`."""
    settings = fingerprint.identity(config.selection, selection.signed(config.selection, config.split), config.split)
    return name("fingerprint", version=fingerprint.VERSION, fingerprint=settings, upstream={"load": load.key})


def selection_entry(name: Name, config: configs.Config, fingerprints: Sequence[Entry], files: list[int] | None) -> Entry:
    """The entry of `selection`; `files` is the split of each file, where files are what is split."""
    settings = selection.identity(config.selection, config.split)
    files_key = files and digest(files)
    return name("selection", version=selection.VERSION, selection=settings, files=files_key, upstream=upstream(fingerprints))


def listing_entry(name: Name, chosen: Entry, sources: Sequence[str]) -> Entry:
    """The entry of the list of copies, which alone depends on what the files are called: on their names, `sources`."""
    return name("listing", version=selection.VERSION, sources=digest(list(sources)), upstream=upstream(chosen))


def tokenizer_entry(
    name: Name, config: configs.Config, load: Entry | Sequence[Entry] | None, chosen: Entry | None = None
) -> Entry:
    """The entry of the tokenizer; `load` is what it is trained on, if it is, and `chosen` says on which documents of it."""
    keys = upstream(load, chosen)
    trained = {"upstream": keys} if keys else {}
    return name("tokenizer", version=tokenizer.VERSION, tokenizer=tokenizer.identity(config.tokenizer), **trained)


def tokenize_entry(name: Name, config: configs.Config, load: Entry, found: Entry, backend: str) -> Entry:
    """The entry of `tokenize` by this backend."""
    return name(
        "tokenize",
        version=tokenizer.VERSION,
        backend=f"{backend} {backends.version(backend)}",
        vocabulary={"special_in_text": config.vocabulary.special_in_text},
        upstream={"load": load.key, "tokenizer": found.key},
    )


def encode_entry(name: Name, config: configs.Config, tokenize: Entry) -> Entry:
    """The entry of `encode`."""
    settings = vocabulary.identity(config.vocabulary)
    return name("encode", version=vocabulary.VERSION, vocabulary=settings, upstream={"tokenize": tokenize.key})


def arrange_entry(name: Name, config: configs.Config, encoded: Sequence[Entry], chosen: Entry | None) -> Entry:
    """The entry of `arrange`."""
    settings, splits = arrange.identity(config.split, config.corpus), list(split.names(config.split))
    return name("arrange", version=arrange.VERSION, arrange=settings, splits=splits, upstream=upstream(encoded, chosen))


def window_entry(name: Name, config: configs.Config, ids: Entry, part: str = "") -> Entry:
    """The entry of `window` over the stream that `ids` holds: that of `encode`, or a split of `arrange`."""
    settings = window.identity(config.window)
    if config.split.shuffle == "windows":
        settings["shuffle"] = config.split.seed
    read = {ids.stage: ids.key} | ({"split": part} if part else {})
    return name("window", version=window.VERSION, window=settings, upstream=read)


def embed_entry(name: Name, config: configs.Config, windows: Entry, written: bool) -> Entry:
    """The entry of `embed`, with the vectors or without."""
    settings = embedding.identity(config.embedding, written)
    return name("embed", version=embedding.VERSION, embedding=settings, upstream={"window": windows.key})
