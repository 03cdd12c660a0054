"""The ledger for a person: what each count of a stage is called, and the balance in lines.

text    20,479 bytes in 1 document
tokens  5,145 = 1 first (no target) + 5,120 targets + 24 tail (dropped)
slots   9,984 = 5,120 targets + 4,864 repeated by overlap
"""

import re
from typing import Any

from pipeline import console

NOTES = {
    "dropped_blank_documents": "blank documents dropped",
    "dropped_undecodable_documents": "undecodable documents dropped",
    "dropped_bad_documents": "bad rows dropped",
    "dropped_short_documents": "short documents dropped",
    "dropped_long_documents": "long documents dropped",
    "dropped_unmatched_documents": "documents without corpus.include dropped",
    "dropped_excluded_documents": "documents with corpus.exclude dropped",
    "html_records": "records of HTML passed over",
    "other_records": "records without text passed over",
    "repaired_ftfy": "documents repaired by ftfy",
    "repaired_unicode": "documents normalised",
    "repaired_newlines": "documents with other line ends",
    "replaced_documents": "documents repaired with U+FFFD",
    "empty_files": "empty files",
    "byte_order_marks": "byte-order marks removed",
    "nul_bytes": "NUL bytes kept",
    "special_literals": "special tokens written in the text",
    "unknown": "unknown tokens",
    "unknown_bytes": "bytes of text in no token",
}
ADDED = {"tokens": "tokens", "eos": "EOS", "bos": "BOS"}
CHOSEN = {
    "kept_ids": "kept",
    "train_ids": "train",
    "validation_ids": "validation",
    "test_ids": "test",
    "left_out_ids": "left out by weights",
    "dropped_gap_ids": "between splits",
    "dropped_duplicate_ids": "in copies of other documents",
    "dropped_near_duplicate_ids": "in near copies",
}
USED = {
    "first": "first (no target)",
    "targets": "targets",
    "tail": "tail (dropped)",
    "gap": "skipped between windows",
    "kept": "kept",
    "truncated": "truncated",
}
FILLED = {
    "targets": "targets",
    "kept": "tokens",
    "repeated": "repeated by overlap",
    "special": "special tokens",
    "padding": "padding",
}


def lines(
    ledger: dict[str, dict[str, int]], splits: dict[str, Any] | None = None, mixture: dict[str, Any] | None = None
) -> list[str]:
    """What came in, what became a target, what was dropped and why; `splits` and the parts of a `mixture` by name, if any."""
    load, tokenize, encode, arrange = (ledger.get(stage, {}) for stage in ("load", "tokenize", "encode", "arrange"))
    counts = {**load, **tokenize, **encode}
    text, tokens = console.counted(load.get("text_bytes", 0), "byte"), encode.get("tokens", 0)
    ids = tokens + encode.get("eos", 0) + encode.get("bos", 0)
    notes = [f"{said}: {counts[note]:,}" for note, said in NOTES.items() if counts.get(note)]
    lines = [
        ("text", f"{text} in {console.counted(load.get('documents', 0), 'document')}"),
        ("", "; ".join(notes)),
        ("IDs", _sum(ids, counts, ADDED) if ids != tokens else ""),
        ("" if ids != tokens else "IDs", _sum(ids, arrange, CHOSEN, arrange.get("repeated", 0)) if arrange else ""),
    ]
    for split, own in (splits or {"": ledger}).items():
        window = own.get("window", {})
        filled = any(window.get(part) for part in ("repeated", "special", "padding"))
        lines += [
            (split or ("tokens" if ids == tokens else ""), _sum(window.get("tokens", 0), window, USED)),
            ("" if split else "slots", _sum(window["slots"], window, FILLED) if filled else ""),
        ]
    lines += [(name, _told(part)) for name, part in (mixture or {}).items()]
    width = max(6, *(len(name) for name, _ in lines))
    return [f"  {name:<{width}}  {said}" for name, said in lines if said]


def _told(part: dict[str, Any]) -> str:
    """What a part of a mixture gave, beside what was asked for: see `mixture.facts`."""
    return (
        f"{console.counted(part['tokens'], 'token')}, {part['achieved']:.2%} ({part['asked']:.2%} asked), "
        f"{part['repetitions']:.2f} times: {part['repeated']:,} repeated, {part['left_out']:,} left out"
    )


def _sum(total: int, counts: dict[str, int], parts: dict[str, str], repeated: int = 0) -> str:
    return (
        f"{total:,} "
        + (f"+ {repeated:,} repeated " if repeated else "")
        + "= "
        + " + ".join(f"{counts[part]:,} {beside(counts[part], said)}" for part, said in parts.items() if counts.get(part))
    )


def beside(count: int, said: str) -> str:
    """What a count is called, where it stands beside it.

    >>> beside(2, "targets"), beside(1, "targets"), beside(1, "between splits")
    ('targets', 'target', 'between splits')
    """
    return re.sub(r"\b(token|target|byte|ID)s\b", r"\1", said, count=1) if count == 1 else said
