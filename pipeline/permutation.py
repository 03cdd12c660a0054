"""A random order of 0 … n - 1 that is computed, not stored: for the shuffles of documents, windows and samples."""

import numpy as np
import numpy.typing as npt

ROUNDS = 6  # of the Feistel network; four are enough in theory (Luby and Rackoff 1988) where the halves are large

Ints = npt.NDArray[np.int64]


def keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """The round keys of an epoch's shuffle, uint64."""
    return np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(ROUNDS, np.uint64).astype(np.uint64)


def permute(positions: Ints, n: int, keys: npt.NDArray[np.uint64]) -> Ints:
    """The images of `positions` (int64, each below n) under a pseudo-random permutation of 0 … n - 1.

    A Feistel network permutes the numbers of 2h bits, with h the least for which 4^h >= n: it splits a number in
    halves and, once per key, replaces (left, right) by (right, left xor F(right, key)). That can be undone whatever
    F is, so no two numbers meet. An image of n or more is permuted again until it is less (cycle walking: Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), fewer than four times on average. F is the finalizer of
    splitmix64. Memory is that of `positions`; nothing is stored per sample.

    With n = 6, h = 2: the network permutes 0 … 15. With seed 1 in epoch 0 it takes 0 to 8, which is no sample, and
    8 to 5, which is; it takes 2 to 4 at once:

        position   0        1         2     3     4                                 5
                   → 8 → 5  → 13 → 3  → 4   → 0   → 10 → 9 → 15 → 7 → 12 → 14 → 11 → 2   → 6 → 1

    >>> permute(np.arange(6), 6, keys(seed=1, epoch=0)).tolist()
    [5, 3, 4, 0, 2, 1]
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)

    def once(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = numbers >> half, numbers & mask
        for key in keys:
            mixed = right + key
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        return (left << half) | right

    out = once(positions.astype(np.uint64))
    while len(walking := np.flatnonzero(out >= n)):
        out[walking] = once(out[walking])
    return out.astype(np.int64)
