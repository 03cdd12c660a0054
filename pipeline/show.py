"""What lies in a finished dataset, as a person reads it: a row, a document, a token, the rows of a stage.

    python -m pipeline.tools show outputs/verdict --row 3
    python -m pipeline.tools show outputs/verdict --document 0
    python -m pipeline.tools show outputs/verdict --token women
    python -m pipeline.tools show outputs/verdict --stage tokenize

Each function gives a `rich.text.Text`: in colour on a terminal, where equal tokens have equal colours, plain in a pipe
(`.plain`). Whatever a text holds, no control character of it reaches the terminal.
"""

import os
import shutil
import textwrap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import console, manifests
from pipeline.arrow import flags, flattened, list_values, read_batches, string_bytes, to_numpy
from pipeline.cache import Cache, Entry
from pipeline.choosing import COPIES, VERDICTS
from pipeline.errors import ConfigError, IntegrityError
from pipeline.output import in_order
from pipeline.selection import REASONS
from pipeline.split import NAMES
from pipeline.trace import Finished, told_rows

if TYPE_CHECKING:
    from rich.text import Text

SPACES = str.maketrans({" ": "·", "\n": "⏎", "\t": "→", "▁": "·"})  # ▁ is how SentencePiece spells a space
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red")  # of the sixteen that every terminal maps to its theme
MOST = 2000  # bytes or tokens of a document that are drawn
LONGEST = 64  # characters of a token that are drawn
FEW = 5  # rows of a stage, places of a token


def show(
    folder: Path,
    row: int | None = None,
    document: int | None = None,
    token: str | None = None,
    stage: str | None = None,
    cache_dir: Path = Path("data/cache"),
    width: int | None = None,
) -> "Text":
    """What is asked for, the first row where nothing is. Raises ConfigError where there is no such thing."""
    dataset, width = Finished(folder), width or shutil.get_terminal_size((100, 24)).columns
    if document is not None:
        return draw_document(dataset, document, width)
    if token is not None:
        return draw_token(dataset, token)
    if stage is not None:
        return draw_stage(dataset, stage, cache_dir, width)
    return draw_row(dataset, row or 0, width)


def spelt(dataset: Finished, i: int) -> str:
    """The token of an ID as `spell` gives it; of a very long one the beginning."""
    token = spell(dataset.vocabulary.get(i, f"[{i}]"), dataset.letters)
    return token if len(token) <= LONGEST else f"{token[: LONGEST - 1]}…"


def spell(token: str, letters: dict[str, int]) -> str:
    """A token for a person: what its letters stand for, white space as signs, nothing that a terminal would obey.

    >>> spell("ĠnÃ£o", {"Ġ": 32, "n": 110, "Ã": 195, "£": 163, "o": 111})
    '·não'
    """
    if letters and all(letter in letters for letter in token):
        token = bytes(letters[letter] for letter in token).decode(errors="backslashreplace")
    return console.printable(token.translate(SPACES))


def colour(i: int) -> str:
    """Of a token: equal ones have equal colours."""
    return COLOURS[i % len(COLOURS)]


def draw_row(dataset: Finished, index: int, width: int) -> "Text":
    """A row: token strings and IDs, each target beneath the input that it follows, and where they came from."""
    from rich.text import Text

    row, place = dataset.row(index), dataset.place(index)
    inputs, targets = row["input_ids"], row.get("target_ids")
    first, stop = dataset.span(index)
    out = Text().append(f"row {place:,} of {dataset.rows:,} in {console.printable(str(dataset.folder))}\n", "bold")
    out.append(f"stream positions {first:,} to {stop:,}\n")
    documents = dataset.between(first, stop)
    for document in documents[:9]:
        out.append(f"document {document:,}: {console.printable(dataset.where(document))}\n")
    if len(documents) > 9:
        out.append(f"and {len(documents) - 9} more documents\n")
    lines = {"input": inputs, "id": [str(i) for i in inputs]}
    if targets is not None:
        shift = [""] * (len(inputs) - len(targets))
        lines |= {"target": [*shift, *targets], "id ": [*shift, *(str(i) for i in targets)]}
    lines |= {name.split("_")[0]: [str(v) for v in row[name]] for name in ("attention_mask", "token_type_ids") if name in row}
    out.append("\n")
    out.append_text(_columns(dataset, lines, width))
    out.append("\ntext:")
    for line in dataset.decode(inputs).split("\n"):
        out.append(f"\n  {console.printable(line)}")
    return out


def draw_document(dataset: Finished, document: int, width: int) -> "Text":
    """A document: where it came from, the rows that hold it, its text and its tokens."""
    from rich.text import Text

    count = len(dataset.documents["first"])
    if not 0 <= document < count:
        raise ConfigError(f"document {document}: the dataset has documents 0 to {count - 1}.")
    first, tokens = (int(dataset.documents[name][document]) for name in ("first", "tokens"))
    rows = dataset.rows_at(first, first + tokens)
    out = Text().append(f"document {document:,} of {count:,}: {console.printable(dataset.where(document))}\n", "bold")
    out.append(f"{console.counted(tokens, 'ID')} at stream positions {first:,} to {first + tokens:,}, in {told_rows(rows)}\n\n")
    text, ids = b"", []
    for _, batch in dataset.read(range(document, document + 1)):
        text += bytes(string_bytes(batch["text"])[0][: MOST + 1])
        if len(text) > MOST:
            break
    for line in text[:MOST].decode(errors="ignore").split("\n"):
        out.append(f"  {console.printable(line)}\n")
    for _, _, found, _ in dataset.tokens(range(document, document + 1)):
        ids += found[:MOST].tolist()
        if len(ids) > MOST // 8:
            break
    out.append("  …\n\n" if len(text) > MOST else "\n")
    out.append_text(_columns(dataset, {"token": ids[: MOST // 8], "id": [str(i) for i in ids[: MOST // 8]]}, width))
    return out


def draw_token(dataset: Finished, token: str) -> "Text":
    """A token, by its string (as the vocabulary or as we spell it) or its ID: what it is, and where it stands."""
    from rich.text import Text

    numbers = {name: i for i, name in dataset.vocabulary.items()}
    told = {spell(token, dataset.letters): i for i, token in dataset.vocabulary.items()}
    i = numbers.get(token, told.get(token.translate(SPACES)))
    if i is None and token.isdecimal():
        i = int(token)
    if i not in dataset.vocabulary:
        import difflib

        near = difflib.get_close_matches(token, told, 3)
        hint = f" Nearest: {', '.join(map(repr, near))}." if near else ""
        raise ConfigError(f"{token!r} is no token and no ID of this vocabulary of {len(numbers):,}.{hint}")
    whole = spell(dataset.vocabulary[i], dataset.letters)
    out = Text().append("token ", "bold").append(whole, f"bold {colour(i)}").append(f"  ID {i:,}", "bold")
    out.append(" of {:,}{}\n".format(len(numbers), ", special" if dataset.vocabulary[i] in dataset.tokenizer.special else ""))
    places: list[tuple[int, int]] = []
    rows = 0
    for start, first, ids in _inputs(dataset):
        hits = np.argwhere(ids == i)
        rows += len(np.unique(hits[:, 0]))
        places += [(start + int(row), int(first[row] + at)) for row, at in hits[: FEW - len(places)]]
    which = "the last input" if dataset.window.mode == "prefix" else "an input"  # rows that grow repeat all the others
    out.append(f"{which} of {console.counted(rows, 'row')} of {dataset.rows:,}")
    for row, at in places:
        around = dataset.row(row)["input_ids"][max(0, at - 6) : at + 7]
        out.append(f"\n  row {row:,} place {at:,}: ")
        for place, other in enumerate(around, max(0, at - 6)):
            out.append(spelt(dataset, other) + " ", f"bold {colour(i)}" if place == at else "")
    out.rstrip()
    return out


def _inputs(dataset: Finished) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The inputs of all rows, a batch at a time: (number of its first row, the place in each row of the first ID that is
    given of it [rows], IDs [rows, L]). Of rows that grow one ID is given, which is new in each: the last."""
    row = 0
    for name in manifests.data_files(dataset.manifest):
        for batch in read_batches(dataset.file(name)):
            column = batch["input_ids"]
            if pa.types.is_fixed_size_list(column.type):
                yield row, np.zeros(len(batch), np.int64), to_numpy(flattened(column)).reshape(len(batch), -1)
            else:
                values, offsets = list_values(column)
                yield row, np.diff(offsets) - 1, values[offsets[1:] - 1][:, None]
            row += len(batch)


def draw_stage(dataset: Finished, stage: str, cache: Path, width: int) -> "Text":
    """What a stage counted, its first rows (of `arrange`, those of this split), and what else it keeps, as it lies in the
    cache. Raises ConfigError where there is no such stage, or it is gone, IntegrityError where a file of it is damaged."""
    from rich.text import Text

    keys = dataset.manifest["keys"]
    if stage not in keys or stage == "tokenizer":
        raise ConfigError(f"stage {stage!r} is none of {', '.join(name for name, _ in in_order(keys) if name != 'tokenizer')}.")
    name = stage.partition(" ")[0]  # of a mixture each part has its own, as in "load a"
    entry = Entry(Cache(cache, ""), name, keys[stage], {})
    kept = entry.manifest() or {"files": {}}
    own = f"{dataset.manifest.get('split') or 'all'}.arrow"
    tables = sorted((file for file in kept["files"] if file.endswith(".arrow")), key=lambda file: (file != own, file))
    tables = [VERDICTS, COPIES] if name == "selection" else tables[:1]  # else one of many shards, or splits, is enough
    rest = sorted(file for file in kept["files"] if not file.endswith(".arrow"))
    if not kept["files"] or not all(os.path.lexists(entry.path(file)) for file in tables + rest):
        raise ConfigError(f"{stage} {keys[stage][:8]} is not in the cache {str(cache)!r} (any more): set --dir, or run again.")
    for file in tables + rest:
        if problem := entry.examine(file, kept["files"][file]):
            raise IntegrityError(
                f"{str(entry.path(file))!r} is damaged: {problem}. Run the pipeline again: it computes it anew."
            )
    out = Text().append(f"{stage} {keys[stage]}\n", "bold")
    counts = ", ".join(f"{what.replace('_', ' ')} {count:,}" for what, count in kept.get("ledger", {}).get(name, {}).items())
    out.append(textwrap.fill(counts, width))
    said = _words(dataset, stage)
    for file in tables:
        rows = ((batch, row) for batch in read_batches(entry.path(file)) for row in range(len(batch)))
        for nth, (batch, row) in enumerate(islice(rows, FEW)):
            out.append(f"\nrow {nth}" + (f" of {file}" if len(tables) > 1 else ""), "bold")
            for column in batch.schema.names:
                out.append(f"\n  {column:<14} {_cell(batch[column], row, width - 17, dataset.letters, said.get(column))}")
    for other in rest:
        out.append(f"\n{other}", "bold").append(f"  {console.size(kept['files'][other]['bytes'])}")
        if other.endswith(".jsonl"):
            with open(entry.path(other), encoding="utf-8") as file:
                for line in islice(file, FEW):
                    out.append(f"\n  {_fit(line.rstrip(), width - 2)}")
    return out


def _words(dataset: Finished, stage: str) -> dict[str, dict[int, str]]:
    """What the numbers in columns of a stage stand for, where they are names."""
    sources = {i: repr(source["path"]) for i, source in enumerate(dataset.sources)}
    if stage == "arrange":
        return {"source": sources}
    if stage == "selection":
        names = [name for name in NAMES if f"{name}_documents" in dataset.manifest["ledger"]["selection"]] or ["kept"]
        return {"verdict": dict(enumerate(names)) | REASONS, "source": sources, "first_source": sources}
    return {}


def _cell(column: pa.Array, row: int, width: int, letters: dict[str, int], said: dict[int, str] | None = None) -> str:
    """A value in one line; `said` names those that stand for something."""
    if pa.types.is_string(column.type):
        text = column[row].as_buffer().to_pybytes()[: 4 * width].decode(errors="ignore").replace("\n", "⏎")
    elif pa.types.is_boolean(column.type):
        text = str(bool(flags(column)[row]))
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        value = to_numpy(column)[row]
        text = f"{value}: {said[int(value)]}" if said and int(value) in said else str(value)
    else:
        values = column[row].values
        shape = f"{len(values):,}"
        if pa.types.is_fixed_size_list(values.type):
            shape, values = f"{shape} × {values.type.list_size}", values[0].values
        words = " ".join(_word(values[i].as_py(), letters) for i in range(min(len(values), width)))
        text = f"{shape}: {words}"
    return _fit(text, width)


def _fit(text: str, width: int) -> str:
    """A line without control characters, cut where it is longer."""
    text = console.printable(text)
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


def _word(value: Any, letters: dict[str, int]) -> str:
    return f"{value:.3f}" if isinstance(value, float) else spell(str(value), letters)


def _columns(dataset: Finished, lines: dict[str, list[Any]], width: int) -> "Text":
    """Named rows of cells, aligned, folded at `width`. A cell is a token's ID, drawn as its string, or a string."""
    from rich.cells import cell_len
    from rich.text import Text

    label = max(map(len, lines)) + 2
    cells = [
        [(spelt(dataset, cell), colour(cell)) if isinstance(cell, int) else (cell, "") for cell in column]
        for column in zip(*lines.values(), strict=True)
    ]
    widths = [max(cell_len(text) for text, _ in column) + 1 for column in cells]
    out, start = Text(), 0
    while start < len(cells):
        stop, used = start, label
        while stop < len(cells) and (stop == start or used + widths[stop] <= width):
            used += widths[stop]
            stop += 1
        for place, name in enumerate(lines):
            line = Text().append(f"{name.strip():<{label}}", "dim")
            for i in range(start, stop):
                text, style = cells[i][place]
                line.append(text + " " * (widths[i] - cell_len(text)), style)
            line.rstrip()
            out.append_text(line).append("\n")
        start = stop
        if start < len(cells):
            out.append("\n")
    return out
