"""Which columns of a record make its text, and which are carried along.

    corpus.text_column: meta.body.text          {"meta": {"body": {"text": "Dear Hester, …"}}}
    corpus.template: "{title}\\n\\n{meta.body}"   one text from several columns, in this order
    corpus.metadata: [url, lang]                beside each document in documents.arrow, as strings

A dot leads into a nested record, unless a column has that very name. Text must be a string: a number, a null or nothing
at all is a bad row, and is never made into words. Metadata may be anything: what is no string is written as JSON, bytes
as the text that they are where they are UTF-8 and in hexadecimal where not, and what is missing is null.
"""

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.arrow import adjoin, flags, joined_or_null, numbers, strings
from pipeline.batches import row_bytes
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError

Pairs = tuple[tuple[str, Any], ...]  # a JSON object, in which a key may be given twice
KINDS = (pa.string(), pa.large_string(), pa.string_view())
BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
MISSING = object()
Key = TypeVar("Key")


@dataclass(frozen=True)
class Columns:
    """The columns that a corpus names. `pieces` is what stands before each column in the text; `tail` what ends it."""

    text: tuple[str, ...]
    pieces: tuple[bytes, ...]
    tail: bytes
    metadata: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every column that is read, once."""
        return tuple(dict.fromkeys(self.text + self.metadata))

    @property
    def added(self) -> int:
        """Bytes that the template adds to each document."""
        return sum(map(len, self.pieces)) + len(self.tail)

    def join(self, values: list[bytes]) -> bytes:
        """The text of one record from the values of its text columns."""
        if len(values) == 1 and not self.added:
            return values[0]
        return b"".join(part for pair in zip(self.pieces, values, strict=True) for part in pair) + self.tail

    def join_arrays(self, values: list[pa.StringArray]) -> pa.StringArray:
        """The texts of many records."""
        if len(values) == 1 and not self.added:
            return values[0]
        rows = [self.join(list(row)) for row in zip(*map(row_bytes, values), strict=True)]
        return strings(b"".join(rows), adjoin([*map(len, rows)]))


@lru_cache
def _parse(text_column: str, template: str | None, metadata: tuple[str, ...]) -> Columns:
    if template is None:
        return Columns((text_column,), (b"",), b"", metadata)
    names, pieces, tail = [], [], ""
    try:
        for literal, name, form, conversion in string.Formatter().parse(template.replace("\\n", "\n")):
            tail += literal
            if name is not None:
                if form or conversion or not name:
                    raise ValueError("a column in braces is its name and nothing else")
                names.append(name)
                pieces.append(tail.encode())
                tail = ""
    except ValueError as error:
        raise ConfigError(
            f"corpus.template={template!r} cannot be read: {error}. Write {{column}}, and {{{{ for a brace."
        ) from error
    if not names:
        raise ConfigError(f"corpus.template={template!r} names no column: write {{title}} for the column 'title'.")
    return Columns(tuple(names), tuple(pieces), tail.encode(), metadata)


def columns(corpus: Corpus) -> Columns:
    """What the configuration names. Raises ConfigError where `corpus.template` is none."""
    return _parse(corpus.text_column, corpus.template, tuple(corpus.metadata))


def text_leaves(metadata: Any, corpus: Corpus) -> list[int]:
    """The numbers of the leaf columns of a Parquet file, by its metadata, that make the text."""
    names, text = (metadata.schema.column(i).path for i in range(metadata.num_columns)), columns(corpus).text
    return [i for i, name in enumerate(names) if lies_in(name, text)]


def lies_in(leaf: str, names: Sequence[str]) -> bool:
    """Is a leaf column of a Parquet file one of these, or part of one?"""
    return leaf in names or leaf.startswith(tuple(f"{name}." for name in names))


def missing(name: str, found: list[str], likely: list[str], corpus: Corpus) -> ConfigError:
    """The error for a column that is not there, with those that are."""
    key = "corpus.template" if corpus.template is not None else "corpus.text_column"
    hint = f" Did you mean corpus.text_column={likely[0]}?" if likely and corpus.template is None else f" Set {key}=."
    return ConfigError(f"no column {name!r}; found: {', '.join(found[:8])}.{hint}")


# -- a record of JSON -------------------------------------------------------------------------------------


def look_up(row: Pairs, dotted: str) -> Any:
    """The value at a dotted path, MISSING where there is none. Raises InputError where it is given twice.

    >>> look_up((("a", (("b", 1),)), ("a.b", 2)), "a.b"), look_up((("a", (("b", 1),)),), "a.b")
    (2, 1)
    """
    values = [value for key, value in row if key == dotted]
    if len(values) > 1:
        raise InputError(f"column {dotted!r} is given {len(values)} times.")
    if values:
        return values[0]
    for at, letter in enumerate(dotted):
        if letter == ".":
            inner = look_up(row, dotted[:at]) if any(key == dotted[:at] for key, _ in row) else None
            if isinstance(inner, tuple) and (value := look_up(inner, dotted[at + 1 :])) is not MISSING:
                return value
    return MISSING


def as_metadata(value: Any) -> str | None:
    """A value of JSON as a string."""
    if value is MISSING or value is None:
        return None
    return value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


# -- a table of Arrow -------------------------------------------------------------------------------------


def is_text(kind: pa.DataType) -> bool:
    """Does a column of this type hold strings?"""
    return (kind.value_type if pa.types.is_dictionary(kind) else kind) in KINDS


def find_field(schema: Any, dotted: str) -> tuple[str, ...] | None:
    """The way to a column in a schema or struct type: its own name, or that of each level. None where there is none."""
    names = [field.name for field in schema]
    if dotted in names:
        return (dotted,)
    for at, letter in enumerate(dotted):
        if letter == "." and dotted[:at] in names:
            kind = schema.field(dotted[:at]).type
            if pa.types.is_struct(kind) and (rest := find_field(list_fields(kind), dotted[at + 1 :])):
                return (dotted[:at], *rest)
    return None


class _Fields(list[pa.Field]):
    """The fields of a struct, with what `find_field` asks of a schema."""

    def field(self, name: str) -> pa.Field:
        """The field of a name."""
        return next(field for field in self if field.name == name)


def list_fields(kind: pa.StructType) -> _Fields:
    """The fields of a struct type."""
    return _Fields(kind.field(i) for i in range(kind.num_fields))


def require_columns(schema: pa.Schema, name: str, corpus: Corpus) -> dict[str, tuple[str, ...]]:
    """The way to each column that the corpus names.

    Raises ConfigError where one is missing, InputError where text is to come from one that holds no strings.
    """
    wanted = columns(corpus)
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"{name!r}: two columns have the same name; found: {', '.join(schema.names)}.")
    ways = {}
    for dotted in wanted.all:
        way = find_field(schema, dotted)
        if way is None:
            likely = [field.name for field in schema if is_text(field.type)]
            error = missing(dotted, schema.names, likely, corpus)
            raise ConfigError(f"{name!r}: {error}")
        kind = _kind(schema, way)
        if dotted in wanted.text and not is_text(kind):
            raise InputError(f"{name!r}: column {dotted!r} holds {kind}, not strings.")
        ways[dotted] = way
    return ways


def _kind(schema: pa.Schema, way: tuple[str, ...]) -> pa.DataType:
    kind = schema.field(way[0]).type
    for name in way[1:]:
        kind = list_fields(kind).field(name).type
    return kind


def take_column(batch: pa.RecordBatch, way: tuple[str, ...]) -> pa.Array:
    """A column of a batch; null where a record above it is."""
    column = batch.column(batch.schema.get_field_index(way[0]))
    for name in way[1:]:
        column = column.flatten()[[field.name for field in list_fields(column.type)].index(name)]
    return column


def metadata_array(column: pa.Array) -> pa.StringArray:
    """Any column as strings, which may not be UTF-8: what has no plain words as JSON."""
    kind = column.type
    if is_text(kind):
        return column.cast(pa.string())
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(column.indices, metadata_array(column.dictionary)).cast(pa.string())
    if pa.types.is_nested(kind):
        return joined_or_null([*map(_as_json, column)])
    try:
        if not any(is_kind(kind) for is_kind in BYTES):
            return column.cast(pa.string())
    except pa.ArrowException:
        pass
    return joined_or_null([None if one is None else _words(one).encode() for one in column.to_pylist()])


def _words(value: Any) -> str:
    """A value that is neither text nor nested, for a person."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def _as_json(value: pa.Scalar) -> bytes | None:
    """A value as JSON; where a string in it is not UTF-8, that string."""
    try:
        plain = value.as_py()
    except UnicodeDecodeError as error:
        return bytes(error.object)
    return None if plain is None else json.dumps(plain, ensure_ascii=False, default=_words).encode()


def take(columns: dict[Key, pa.Array], places: np.ndarray) -> dict[Key, pa.Array]:
    """The rows at these places."""
    rows = numbers(places.astype(np.int64))
    return {key: column.take(rows) for key, column in columns.items()}


def null_rows(column: pa.Array) -> np.ndarray:
    """The places of the nulls, int64; a value of a dictionary may be one."""
    some = column.null_count or (pa.types.is_dictionary(column.type) and column.dictionary.null_count)
    return np.flatnonzero(flags(column.is_null())) if some else np.empty(0, np.int64)
