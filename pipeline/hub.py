"""Datasets of the Hub, or in a folder of the same layout: which files make a split. No script of theirs is ever run.

    user/dataset ──▶ commit ──▶ names of its files ──card or names──▶ files of config and split ──▶ this disk

The card, the YAML at the head of README.md, lists configurations and the files of their splits. Where it does not, the
names tell, in the order in which the `datasets` library looks (docs/source/repository_structure.mdx of that project):

    data/train-00000-of-00002.parquet    the split before the number
    data/training/a.jsonl                a folder named like a split
    my-test.txt                          a file named like a split
    anything else                        train

A folder that `save_to_disk` of that library wrote is read by the same rules: its Arrow files, and not its notes about them.

A revision is resolved to a commit, which the manifest records. Without a network, what the Hub's own cache on this disk
holds of the revision is taken, and it is said that nobody can tell whether it is all.
"""

import logging
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pipeline import assets, places, plan
from pipeline.config import Corpus
from pipeline.console import counted
from pipeline.errors import ConfigError, InputError, TokenizerError

log = logging.getLogger(__name__)

NO_DATA = re.compile(r"config\.json|dataset_infos?\.json|dataset_dict\.json|state\.json|cache-\w+\.arrow")  # `datasets` leaves
KIN = {"jsonl": "json", "tsv": "csv"}  # which the `datasets` library reads together
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
EDGE = "[-._ 0-9]"
SHARDED = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-(\d{5})[^/]*\.[^/]*")
ADDRESS = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{40})/(.+)", re.S)
FETCHES = 8  # files downloaded side by side

Splits = dict[str, list[str]]


def resolve(corpus: Corpus) -> tuple[Corpus, dict[str, Any] | None]:
    """A corpus of the Hub as a corpus of files, with what to record of it; any other as it is, with None.

    Raises ConfigError where there is no such configuration or split, InputError where the dataset cannot be had.
    """
    if corpus.parts:
        found_parts = {name: resolve(part) for name, part in corpus.parts.items()}
        records = {name: record for name, (_, record) in found_parts.items() if record}
        return replace(corpus, parts={name: part for name, (part, _) in found_parts.items()}), records or None
    if corpus.kind != "hub":
        return corpus, None
    try:
        found = assets.find(
            "dataset", "corpus", corpus.name, corpus.revision, _at, partial(_on_hub, corpus.name, corpus.revision)
        )
    except TokenizerError as error:
        raise InputError(str(error)) from error
    names = _names(found, corpus)
    forms = {name: form for name in names if (form := _format(name))}
    kinds = Counter(KIN.get(form, form) for form in forms.values())
    if not kinds:
        raise InputError(f"dataset {corpus.name!r} holds no files that can be read here: {_some(names)}.")
    kind = max(kinds, key=lambda kind: (kinds[kind], kind))
    if kind == "text" and corpus.metadata:
        raise ConfigError(f"corpus.metadata needs records with columns: the files of dataset {corpus.name!r} are text.")
    left = [name for name in names if KIN.get(forms.get(name, ""), forms.get(name)) != kind]
    taken = {forms[name] for name in names if name not in left}
    form = taken.pop() if len(taken) == 1 and taken != {"json"} else "auto"  # of .json the content tells, file by file
    if left:
        log.warning("%s: left out %s in another format than %s: %s", corpus.name, counted(len(left), "file"), kind, _some(left))
    with ThreadPoolExecutor(FETCHES) as pool:
        paths = list(pool.map(found.fetch, [name for name in names if name not in left]))
    record = {"name": corpus.name, "config": corpus.config, "split": corpus.split, "revision": found.commit or corpus.revision}
    return replace(corpus, format=form, paths=[str(path) for path in paths]), record


def recorded(given: dict[str, Any], resolved: Corpus) -> dict[str, Any]:
    """The settings of a corpus as a manifest shows them, with the formats that `resolve` found."""
    parts = given.get("parts") or {}
    if not parts:
        return {**given, "format": resolved.format}
    return {**given, "parts": {name: {**parts[name], "format": part.format} for name, part in resolved.parts.items()}}


def cached(url: str) -> str | None:
    """Where the file of such an address lies on this disk; None where it does not."""
    import huggingface_hub

    if not (match := ADDRESS.fullmatch(url)):
        return None
    path = huggingface_hub.try_to_load_from_cache(match[1], match[3], revision=match[2], repo_type="dataset")
    return path if isinstance(path, str) else None


# -- where a dataset lies ---------------------------------------------------------------------------------


def _at(place: Path) -> assets.Repository | None:
    """A dataset in a folder of the Hub's layout."""
    if not place.is_dir():
        return None
    names = [os.path.relpath(path, place) for path in places.walk(str(place))]
    return assets.Repository("", frozenset(names), partial(Path, place))


@lru_cache
def _on_hub(name: str, revision: str | None) -> assets.Repository:
    return assets.repository(name, revision, (), "dataset")


def _format(name: str) -> str | None:
    """The format that a file's name tells; None where it tells none."""
    try:
        return plan.file_format(name, Corpus(format="auto"))
    except ConfigError:
        return None


# -- which files ------------------------------------------------------------------------------------------


def _names(found: assets.Repository, corpus: Corpus) -> list[str]:
    """The files of `corpus.config` and `corpus.split`, sorted."""
    names = sorted(
        name
        for name in found.files
        if not any(part.startswith((".", "__")) for part in name.split("/")) and not NO_DATA.fullmatch(name.rpartition("/")[2])
    )
    configs = _configs(found)
    chosen = _choose(configs, corpus)
    splits = _splits([name for name in names if name != "README.md"], chosen, corpus.split)
    if corpus.split not in splits:
        raise ConfigError(
            f"corpus.split={corpus.split!r}: dataset {corpus.name!r} has the splits {_some(list(splits)) or '(none)'}."
        )
    taken = splits[corpus.split]
    _require_all(taken, corpus)
    return taken


def _configs(found: assets.Repository) -> list[dict[str, Any]]:
    """The configurations that the card lists."""
    if "README.md" not in found.files:
        return []
    import huggingface_hub
    import yaml

    path = found.fetch("README.md")
    try:
        card = huggingface_hub.DatasetCard.load(path, ignore_metadata_errors=True)
        listed = card.data.to_dict().get("configs") or []
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise InputError(f"{str(path)!r}: the card's YAML cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "config_name" in one for one in listed):
        raise InputError(f"{str(path)!r}: `configs` must be a list of entries that each have a config_name.")
    return listed


def _choose(configs: list[dict[str, Any]], corpus: Corpus) -> dict[str, Any]:
    """The configuration that is asked for: by name, the only one, the default one."""
    names = [str(one["config_name"]) for one in configs]
    if corpus.config is None:
        if len(configs) > 1:
            default = [one for one in configs if one.get("default") or one["config_name"] == "default"]
            if not default:
                raise ConfigError(f"corpus.config is required: dataset {corpus.name!r} has {_some(names)}.")
            return default[0]
        return configs[0] if configs else {}
    if corpus.config not in names:
        if corpus.config == "default" and not configs:
            return {}
        raise ConfigError(f"corpus.config={corpus.config!r}: dataset {corpus.name!r} has {_some(names) or 'only default'}.")
    return configs[names.index(corpus.config)]


def _splits(names: list[str], config: dict[str, Any], wanted: str) -> Splits:
    """The files of each split, sorted, by a card's configuration or by their names."""
    folder = str(config.get("data_dir") or "").strip("/")
    within = [name[len(folder) + 1 :] for name in names if name.startswith(folder + "/")] if folder else names
    listed = config.get("data_files")
    splits = _by_name(within) if listed is None else _by_patterns(within, listed, wanted)
    return {split: [f"{folder}/{name}" if folder else name for name in found] for split, found in splits.items()}


def _by_patterns(names: list[str], listed: Any, wanted: str) -> Splits:
    entries = listed if isinstance(listed, list) else [listed]
    splits: Splits = {}
    for entry in entries:
        split, paths = ("train", entry) if isinstance(entry, str) else (str(entry.get("split")), entry.get("path"))
        patterns = [paths] if isinstance(paths, str) else paths
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"the dataset's card: data_files must be patterns, or entries of split and path, not {entry!r}.")
        for pattern in patterns:
            parts = pattern.removeprefix("./").split("/")
            found = [name for name in names if places.fits(name.split("/"), parts)]
            if not found and split == wanted:
                raise InputError(
                    f"the dataset's card names {pattern!r} for split {split!r}, and nothing of that name is there."
                )
            splits.setdefault(split, []).extend(found)
    return {split: sorted(set(found)) for split, found in splits.items()}


def _by_name(names: list[str]) -> Splits:
    splits: Splits = {}
    for name in names:
        if match := SHARDED.fullmatch(name):
            splits.setdefault(match[1], []).append(name)
    if splits:
        return splits
    folders = {split: re.compile(f"(?:.*{EDGE})?(?:{'|'.join(words)})(?:{EDGE}.*)?", re.S) for split, words in WORDS.items()}
    files = {split: re.compile(f"(?:.*{EDGE})?(?:{'|'.join(words)}){EDGE}.*", re.S) for split, words in WORDS.items()}
    for patterns, parts in ((folders, lambda name: name.split("/")[:-1]), (files, lambda name: [name.rpartition("/")[2]])):
        for split, pattern in patterns.items():
            if found := [name for name in names if any(pattern.fullmatch(part) for part in parts(name))]:
                splits[split] = found
        if splits:
            return splits
    return {"train": names}


def _require_all(names: list[str], corpus: Corpus) -> None:
    """Raise InputError where the numbers in names like train-00000-of-00002 say that some are missing."""
    sets: dict[tuple[str, int], int] = {}
    for name in names:
        if match := re.search(r"^(.*)-\d{5}-of-(\d{5})", name):
            key = (match[1], int(match[2]))
            sets[key] = sets.get(key, 0) + 1
    for (stem, wanted), there in sets.items():
        if there < wanted:
            raise InputError(
                f"dataset {corpus.name!r}: {there} of {wanted} files of {stem!r} are there: download the rest, or set "
                "HF_HUB_OFFLINE=0."
            )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
