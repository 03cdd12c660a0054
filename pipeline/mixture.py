"""A corpus of several, mixed by weights: how often each document of each part is used.

    part    weight  share   has     gives 1,000 IDs of train
    prose   3       0.75    500     750: each document once, and about half of them again
    notes   1       0.25    900     250: about a quarter of its documents

Weights count IDs, not documents or rows. A part gives its documents in their order (the shuffled one, with
`split.shuffle=documents`): as many whole rounds as fit its share, then those that come nearest to it. The budget is
`corpus.tokens`, or as much as every part can give when none is used more than its `max_repetitions`:

    min over parts of   max_repetitions · has / share

What is held out is not weighted: each of its documents is used once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.arrow import adjoin
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError


def identity(corpus: Corpus) -> dict[str, Any]:
    """The settings that can change how often a document is used, parts in their order."""
    parts = [[name, float(part.weight), float(part.max_repetitions)] for name, part in corpus.parts.items()]
    return {"parts": parts, "tokens": corpus.tokens}


def targets(corpus: Corpus, has: Sequence[int]) -> list[int]:
    """How many IDs each part shall give, of the `has` that it holds. Exact: weights are read as decimal fractions.

    Raises InputError where a part that is asked for holds none, and ConfigError where the budget is more than
    `max_repetitions` allow.
    """
    weights = [Fraction(str(part.weight)) for part in corpus.parts.values()]
    shares = [weight / sum(weights) for weight in weights]
    most: dict[str, Fraction] = {}
    for (name, part), share, ids in zip(corpus.parts.items(), shares, has, strict=True):
        if share and not ids:
            raise InputError(f"part {name} of the mixture has no tokens to train on: set corpus.parts.{name}.weight=0.")
        if share:
            most[name] = Fraction(str(part.max_repetitions)) * ids / share
    least = min(most, key=lambda name: most[name])
    if corpus.tokens is not None and corpus.tokens > most[least]:
        number = list(corpus.parts).index(least)
        raise ConfigError(
            f"corpus.tokens={corpus.tokens} is more than the {int(most[least])} that there are: {least} has {has[number]} "
            f"tokens, may be used corpus.parts.{least}.max_repetitions={corpus.parts[least].max_repetitions} times, and "
            f"is to give {float(shares[number]):.2%}. Raise that, lower its weight=, or corpus.tokens="
        )
    total = most[least] if corpus.tokens is None else Fraction(corpus.tokens)
    return [int(total * share) for share in shares]


@dataclass(frozen=True)
class Draw:
    """What a part gives: its documents as often as they are used, int64, and how much that is."""

    order: np.ndarray
    has: int  # IDs
    used: int  # IDs, once for each repetition
    left: int  # IDs of documents that are not used

    @property
    def repeated(self) -> int:
        """IDs that are used, but not for the first time."""
        return self.used - self.has + self.left


def draw(own: np.ndarray, tokens: np.ndarray, target: int, most: float) -> Draw:
    """Documents `own` in whole rounds, then the first of them that come nearest to `target` IDs.

    `tokens` are those of all documents, `most` how often this part may be used.

    >>> draw(np.array([4, 2]), np.array([0, 0, 3, 0, 5]), 14, 2.0).order.tolist()
    [4, 2, 4]
    """
    edges = adjoin(tokens[own])
    has = int(edges[-1])
    rounds, rest = divmod(target, has) if has else (0, 0)
    count = int(np.searchsorted(edges, rest, "right")) - 1 if rest else 0
    if rest and edges[count + 1] - rest <= rest - edges[count]:  # rest < has: there is a next one
        count += Fraction(str(most)) * has >= rounds * has + int(edges[count + 1])
    left = 0 if rounds else has - int(edges[count])
    order = np.concatenate([*[own] * rounds, own[:count]])
    return Draw(order, has, rounds * has + int(edges[count]), left)


def facts(corpus: Corpus, draws: Sequence[Draw]) -> dict[str, dict[str, Any]]:
    """For each part: the share of the tokens that was `asked` for and `achieved`, `tokens` and `documents` as they are
    used, `repetitions` on the average, and the tokens that are `repeated` or `left_out`.
    """
    weights, used = sum(part.weight for part in corpus.parts.values()), sum(one.used for one in draws)
    return {
        name: {
            "asked": part.weight / weights,
            "achieved": one.used / max(used, 1),
            "tokens": one.used,
            "documents": len(one.order),
            "repetitions": one.used / max(one.has, 1),
            "repeated": one.repeated,
            "left_out": one.left,
        }
        for (name, part), one in zip(corpus.parts.items(), draws, strict=True)
    }
