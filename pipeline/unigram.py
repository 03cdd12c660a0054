"""Training a Unigram tokenizer to the same bytes on every machine.

A Unigram tokenizer gives each piece a probability; a word's tokens are the likeliest way to write it as pieces
(Kudo 2018, arXiv:1804.10959). Training starts from all frequent substrings and alternates expectation and
maximisation with pruning:

    words with counts ──▶ seed pieces ──▶ [ expected uses ▶ new probabilities ] twice ──▶ drop the quarter that
    costs least ──▶ … until `vocab_size` pieces are left

    "abab": a|b|a|b  a|b|ab  a|ba|b  ab|a|b  ab|ab      each way has the product of its pieces' probabilities;
                                                        a piece's expected uses are its share in all ways

The trainer in `tokenizers` sums floats in the order of a randomly seeded hash map, so that low bits, and now and
then a piece, differ from run to run. Here words are sorted, sums run in a fixed order, and nothing is used but
+ - × ÷, which IEEE 754 rounds alike everywhere (`exp` and `log` of C libraries are not): probabilities stay
probabilities, and the one logarithm is a series of our own. Words are taken in pieces of `WORD` characters, short
enough for a product of probabilities not to underflow; with that and `CHARACTERS` memory stays below about 300 MB.
"""

import math

import numpy as np

WORD = 24  # characters of a word that are looked at together
PIECE = 16  # characters of a piece at most
CHARACTERS = 1_000_000  # of distinct words, the most frequent first, that training looks at
SHRINK = 0.75  # of the pieces survive a round of pruning

Array = np.ndarray


def train(words: dict[str, int], size: int, alphabet: list[str], min_frequency: int) -> list[tuple[str, float]]:
    """At most `size` pieces with log probabilities, the likeliest first; equal ones by code point.

    `words` counts the words of the corpus; every character of `alphabet` becomes a piece. Longer pieces occur at
    least `min_frequency` times (and twice).
    """
    text, starts, lengths, weights = _layout(words, set(alphabet))
    if not len(starts):
        return []
    table, names, counts = _seed(text, starts, lengths, weights, max(10_000, 16 * size), max(2, min_frequency))
    single = np.array([len(name) == 1 for name in names])
    uses = counts.astype(np.float64)
    first, span = _occurrences(table, len(names))
    while True:
        for _ in range(2):
            uses = _expected(table, starts, lengths, weights, _probabilities(uses, single))
        keep = single | (uses >= 0.5)
        chance = _probabilities(uses, single)
        surplus = int(keep.sum()) - size
        if surplus > 0:
            # A piece is worth its uses times what the next best ways to write it would cost.
            ways, _ = _forward(table, first, span, chance)
            others = np.maximum(ways - chance, chance * 1e-12)
            worth = np.where(single, np.inf, uses * _log(chance / others))
            order = np.lexsort((np.arange(len(names)), -worth))  # stable: pieces are in code-point order
            order = order[keep[order]]
            left = max(size, int(SHRINK * len(order)), int(single.sum()))
            keep = np.zeros(len(names), bool)
            keep[order[:left]] = True
        number = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1).astype(np.int32)  # the last stands for -1
        table = number[table]
        names = [name for name, kept in zip(names, keep.tolist(), strict=True) if kept]
        single, uses, first, span = single[keep], uses[keep], first[keep], span[keep]
        if len(names) <= max(size, int(single.sum())):
            break
    chance = _probabilities(uses, single)
    scores = _log(chance).tolist()
    return sorted(zip(names, scores, strict=True), key=lambda piece: (-piece[1], piece[0]))


def _layout(words: dict[str, int], alphabet: set[str]) -> tuple[Array, Array, Array, Array]:
    """All words end to end as code points; start, length and count of each chunk of them, the longest first."""
    chunks: dict[str, int] = {}
    room = CHARACTERS
    for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        known = "".join(c if c in alphabet else "\0" for c in word)
        for chunk in (known[i : i + WORD] for part in known.split("\0") for i in range(0, len(part), WORD)):
            if chunk not in chunks:
                room -= len(chunk)
            chunks[chunk] = chunks.get(chunk, 0) + count
        if room <= 0:
            break
    ordered = sorted(chunks, key=lambda chunk: (-len(chunk), chunk))
    text = np.frombuffer("".join(ordered).encode("utf-32-le"), np.uint32).astype(np.int64)
    lengths = np.array([len(chunk) for chunk in ordered], np.int64)
    weights = np.array([chunks[chunk] for chunk in ordered], np.float64)
    return text, np.cumsum(lengths) - lengths, lengths, weights


def _seed(text: Array, starts: Array, lengths: Array, weights: Array, limit: int, least: int) -> tuple[Array, list[str], Array]:
    """The pieces to begin with, in code-point order, as `table[l - 1, i]` = number of the piece text[i:i + l] or -1.

    Substrings that occur `least` times, the `limit` with the largest count × length, and all single characters.
    """
    weight = np.repeat(weights, lengths)
    room = np.repeat(starts + lengths, lengths) - np.arange(len(text))  # characters to the end of the chunk
    table = np.full((PIECE, len(text)), -1, np.int32)
    examples, counts, sizes = [], [], []
    known, total = np.zeros(len(text), np.int64), 0  # class of the substring one shorter that starts here
    alive = np.arange(len(text))
    for length in range(1, PIECE + 1):
        alive = alive[room[alive] >= length]
        keys = known[alive] << 21 | text[alive + length - 1]
        _, example, number = np.unique(keys, return_index=True, return_inverse=True)
        count = np.bincount(number, weight[alive], len(example))
        frequent = (count >= least) | (length == 1)
        number = np.where(frequent, np.cumsum(frequent) - 1, -1)[number]
        examples.append(alive[example[frequent]])
        counts.append(count[frequent])
        sizes.append(np.full(int(frequent.sum()), length))
        alive, number = alive[number >= 0], number[number >= 0]
        table[length - 1, alive] = number + total
        known[alive] = number
        total += int(frequent.sum())
        if not len(alive):
            break
    at, count, size = (np.concatenate(parts) for parts in (examples, counts, sizes))
    score = np.where(size == 1, np.inf, count * size)
    best = np.lexsort((np.arange(total), -score))[: max(limit, int((size == 1).sum()))].tolist()
    names = {i: "".join(map(chr, text[at[i] : at[i] + size[i]].tolist())) for i in best}
    best.sort(key=names.__getitem__)
    number = np.full(total + 1, -1, np.int32)
    number[best] = np.arange(len(best), dtype=np.int32)
    return number[table], [names[i] for i in best], count[best]


def _occurrences(table: Array, size: int) -> tuple[Array, Array]:
    """Where in the text each piece can be read, and its length."""
    first, span = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for row in range(PIECE - 1, -1, -1):
        at = np.flatnonzero(table[row] >= 0)
        first[table[row, at]] = at
        span[table[row, at]] = row + 1
    return first, span


def _probabilities(uses: Array, single: Array) -> Array:
    """Probabilities from expected uses.

    exp(digamma(x)) / Σ x is the variational estimate that favours few pieces; x - 1/2 is close to exp(digamma(x)).
    """
    held = np.where(single | (uses >= 0.5), np.maximum(uses - 0.5, 0.5), 0.0)
    return np.asarray(held / math.fsum(held.tolist()))


def _forward(table: Array, starts: Array, lengths: Array, chance: Array) -> tuple[Array, Array]:
    """Total probability of all ways to write each text[start:start + length], and that of each of its heads."""
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    padded = np.append(chance, 0.0)  # of piece -1
    alpha = np.zeros((WORD + 1, len(starts)))
    alpha[0] = 1.0
    for end in range(1, int(lengths[0]) + 1):
        live = int(np.searchsorted(-lengths, -end, "right"))
        for size in range(1, min(end, PIECE) + 1):
            alpha[end, :live] += alpha[end - size, :live] * padded[table[size - 1, starts[:live] + end - size]]
    total = np.empty(len(starts))
    total[order] = alpha[lengths, np.arange(len(starts))]
    return total, alpha


def _expected(table: Array, starts: Array, lengths: Array, weights: Array, chance: Array) -> Array:
    """How often each piece is used in all ways to write all words, each way by its share. Longest words first."""
    total, alpha = _forward(table, starts, lengths, chance)
    padded = np.append(chance, 0.0)
    beta = np.zeros_like(alpha)
    beta[lengths, np.arange(len(starts))] = weights / total
    uses = np.zeros(len(padded))
    for end in range(int(lengths[0]), 0, -1):
        live = int(np.searchsorted(-lengths, -end, "right"))
        for size in range(1, min(end, PIECE) + 1):
            piece = table[size - 1, starts[:live] + end - size]
            share = beta[end, :live] * padded[piece]
            beta[end - size, :live] += share
            uses += np.bincount(np.where(piece < 0, len(chance), piece), alpha[end - size, :live] * share, len(uses))
    return uses[:-1]


def _log(x: Array) -> Array:
    """Natural logarithm of positive doubles by log((1 + s) / (1 - s)) = 2 (s + s³/3 + s⁵/5 + …), s² < 0.03.

    >>> bool(abs(_log(np.array([1e-9, 10.0])) - np.log([1e-9, 10.0])).max() < 1e-14)
    True
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, mantissa * 2, mantissa)
    exponent = exponent - low
    s = (mantissa - 1) / (mantissa + 1)
    square, series = s * s, np.zeros_like(s)
    for odd in range(25, 0, -2):
        series = series * square + 1.0 / odd
    return np.asarray(2 * s * series + exponent * 0.6931471805599453)
