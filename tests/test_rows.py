"""Every row of the fault catalogue has a test that is marked with it. `python tests/test_rows.py` lists which.

A: crashes, concurrency, storage. B: input. C: tokenizer, windows, configuration, security.
"""

import ast
from collections import defaultdict
from pathlib import Path

ROWS = {
    "A1": "killed at any call that changes a file",
    "A2": "killed at random moments, with any number of workers; no orphans",
    "A3": "a power cut drops what was not synced",
    "A4": "Ctrl-C, once and twice",
    "A5": "SIGTERM",
    "A6": "many identical runs at once",
    "A7": "many identical runs at once, locks that do nothing",
    "A8": "different configurations on one cache",
    "A9": "a reader while its files are replaced and collected",
    "A10": "a full disk, of 50 sizes, and the estimate before",
    "A11": "fsync, close or read fails",
    "A12": "quota, open files or memory run out",
    "A13": "a read-only cache that holds the entry",
    "A14": "a read-only cache that does not",
    "A15": "one bit flipped in a cached file",
    "A16": "a cached file cut, extended, zeroed, exchanged, missing, a folder",
    "A17": "a manifest flipped, cut, empty, huge, deep, of a future version",
    "A18": "a manifest that names a path outside, or a link",
    "A19": "a source changed under the same name, size and mtime",
    "A20": "a source touched, copied, renamed",
    "A21": "a source that changes during the run",
    "A22": "clocks set back, times in 2099 and 1970",
    "A23": "a worker killed in the middle of a shard",
    "A24": "a worker that crashes, exits or hangs",
    "A25": "an exception inside a shard",
    "A26": "no HOME, no room in /tmp, any umask, locale, hash seed, time zone",
    "A27": "caches at odd paths",
    "A28": "what dead runs left: locks and temporary files",
    "A29": "any engine, number of workers and batch size",
    "A30": "a cache of an earlier release",
    "A31": "gc during a run",
    "A32": "something lies where the output is to go",
    "B1": "bytes that are not UTF-8",
    "B2": "a byte-order mark",
    "B3": "UTF-16 and UTF-32",
    "B4": "other line ends",
    "B5": "what Unicode calls a line's end",
    "B6": "NUL bytes",
    "B7": "lone surrogates",
    "B8": "an empty file among others",
    "B9": "nothing but empty files and white space",
    "B10": "one giant line",
    "B11": "a megabyte without a space, of one character, of combining marks, of joined emoji",
    "B12": "many tiny files",
    "B13": "a malformed line of JSON",
    "B14": "a last line without its end",
    "B15": "an array given as lines, and the reverse",
    "B16": "a column that is missing",
    "B17": "a column missing in some rows, null, a number",
    "B18": "keys given twice, NaN, deep nesting",
    "B19": "truncated and concatenated compressed files, wrong names",
    "B20": "bombs",
    "B21": "archives that are made to harm",
    "B26": "Parquet of another schema, damaged, encrypted, without rows",
    "B27": "Arrow with offsets that lead outside",
    "B22": "links in a loop, to nothing, twice to one file",
    "B23": "folders, pipes, sockets, devices and /proc given as files",
    "B24": "a file that may not be read",
    "B25": "a pattern that matches nothing",
    "B29": "more than 2 GiB in one column chunk",
    "B28": "a file that is deleted, cut or grows during the run",
    "B30": "addresses that may not be read, and redirects to them",
    "B31": "downloads that fail, break off, do not end or are something else",
    "B32": "two files of the same content",
    "C1": "a tokenizer that is nowhere, offline",
    "C2": "vocabularies beyond 65,535; narrowing is checked",
    "C3": "an end token is asked for and there is none",
    "C4": "a tokenizer in Python alone",
    "C5": "a tokenizer that adds marks by itself",
    "C6": "a tokenizer with padding and truncation switched on",
    "C7": "characters that no token covers",
    "C8": "an ID without a vector",
    "C9": "a context longer than the corpus",
    "C10": "corpora of exactly L, L + 1, L + 2 tokens",
    "C11": "a stride of 0, negative, a fraction, a word",
    "C12": "a stride larger than the context",
    "C13": "absurd strides and contexts",
    "C14": "unknown and misspelt keys",
    "C15": "wrong types, null, cycles, missing values",
    "C16": "an unknown choice of a group",
    "C17": "code in configuration",
    "C18": "remote code",
    "C19": "interpolations of the environment",
    "C20": "secrets in arguments, files and messages",
    "C21": "paths that escape",
    "C22": "objects in YAML",
    "C23": "markup in text on an HTML page",
    "C24": "control characters in file names and logs",
    "C25": "one job of a sweep fails",
    "C26": "a sweep that goes on after half of it",
    "C27": "pickled weights",
    "C28": "NaN in vectors, a device too small",
    "C29": "targets are not shifted twice",
    "C30": "a Ray cluster of our own: no dashboard, and no answer to strangers",
}
UNTESTED: dict[str, str] = {}


def claimed() -> dict[str, list[str]]:
    """The tests by the rows that they are marked with."""
    found = defaultdict(list)
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.row":
                        for row in ast.literal_eval(ast.Tuple(mark.args, ast.Load())):
                            found[row].append(f"{path.name}::{node.name}")
    return found


def test_every_row_is_claimed_by_a_test_or_has_a_reason_and_no_mark_is_misspelt():
    assert set(claimed()) == set(ROWS)
    assert {*ROWS, *UNTESTED} == {
        f"{part}{n}" for part, last in {"A": 32, "B": 32, "C": 30}.items() for n in range(1, last + 1)
    }
    assert not ROWS.keys() & UNTESTED.keys()


if __name__ == "__main__":
    for row, what in ROWS.items():
        print(f"{row}: {what}\n" + "\n".join(f"    {test}" for test in claimed()[row]))
    for row, reason in UNTESTED.items():
        print(f"{row}: {reason}")
