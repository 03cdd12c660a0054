"""Special tokens that are spelt out in text: `<|endoftext|>` inside a document.

They are counted in every document, also where one lies across two pieces of it, and refused where the configuration
says so, or where the tokenizer could not take them as text. Most text is passed over at the speed of one comparison
a byte.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrow import string_bytes
from pipeline.errors import InputError


class Literals:
    """Counts special tokens that are spelt out in text, also across the pieces of a document."""

    def __init__(self, special: Sequence[str], special_in_text: str, leaking: frozenset[str], sources: Sequence[str]) -> None:
        """`special` are the tokens to look for, `leaking` those that come out of text whatever `special_in_text` says."""
        special = sorted(special, key=lambda token: (-len(token), token))
        encoded = [token.encode() for token in special]
        self.refused, self.leaking, self.sources = special_in_text == "error", leaking, sources
        self.pattern = "|".join(_re2_literal(token) for token in special)
        self.bytes_pattern = re.compile(b"|".join(map(re.escape, encoded)))
        self.longest = max(map(len, encoded), default=0)
        # Which byte may stand at each of the first places: enough to rule out most text at next to no cost.
        places = range(min([4, *map(len, encoded)]))
        self.heads = [np.isin(np.arange(256), [token[place] for token in encoded]) for place in places]
        self.tail = b""  # end of the piece before, from behind its last match

    def count(self, batch: pa.RecordBatch, whole: bool) -> int:
        """How many a batch of whole documents holds, or (not `whole`) one piece of a document.

        Raises InputError where one may not be there.
        """
        if not self.longest:
            return 0
        text = batch["text"]
        if not whole:
            return self._piece(batch, text[0].as_buffer().to_pybytes())
        if not self._possible(string_bytes(text)[0]):
            return 0
        import pyarrow.compute as pc

        found = pc.count_substring_regex(text, self.pattern)
        total = int(pc.sum(found).as_py() or 0)
        if total and (self.refused or self.leaking):
            for row in range(int(pc.index(pc.greater(found, 0), True).as_py()), len(text)):
                for match in self.bytes_pattern.finditer(text[row].as_buffer().to_pybytes()):
                    self._judge(match[0], batch, row)
        return total

    def _possible(self, data: Any) -> bool:
        """Could a special token begin anywhere?"""
        view = np.frombuffer(data, np.uint8)
        first = np.flatnonzero(self.heads[0]).astype(np.uint8)  # of the bytes' own dtype: another would widen them all
        at = np.flatnonzero(view == first[0] if len(first) == 1 else self.heads[0][view])
        for place, allowed in enumerate(self.heads[1:], 1):
            at = at[at + place < len(view)]
            at = at[allowed[view[at + place]]]
        return bool(len(at))

    def _piece(self, batch: pa.RecordBatch, piece: bytes) -> int:
        data, total, last = self.tail + piece, 0, 0
        if self._possible(data):
            for match in self.bytes_pattern.finditer(data):
                total += 1
                last = match.end()
                self._judge(match[0], batch, 0)
        ends = bool(batch["ends"][0].as_py())
        self.tail = b"" if ends else data[max(last, len(data) - self.longest + 1) :]
        return total

    def _judge(self, literal: bytes, batch: pa.RecordBatch, row: int) -> None:
        """Raise InputError where the literal may not be in the text."""
        token = literal.decode()
        if not self.refused and token not in self.leaking:
            return
        source = batch["source"][row].as_py()
        name = repr(self.sources[source]) if source < len(self.sources) else f"source {source}"
        where = f"{name}, {batch['start'][row].as_py()} to {batch['end'][row].as_py()}"
        if self.refused:
            raise InputError(
                f"{where}: the text spells the special token {token!r}. Set vocabulary.special_in_text=text to take it as "
                "text, or token to let it be one."
            )
        raise InputError(
            f"{where}: the text spells the special token {token!r}, which this tokenizer cannot take as text: its model has it "
            "in its own vocabulary. Set vocabulary.special_in_text=token to let it be one, or change the text."
        )


def _re2_literal(token: str) -> str:
    """A literal in the syntax of RE2, which Arrow uses; re.escape also escapes what RE2 would refuse."""
    return re.sub(r"([\\.^$|?*+()\[\]{}])", r"\\\1", token)
