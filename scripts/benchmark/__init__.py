"""How fast, beside the tools people use: `python -m scripts.benchmark --sizes 20mb,200mb --rounds 5`.

    corpora ─▶ environments ─▶ rehearsal ─▶ rounds: A B C … A B C … ─▶ IDs compared ─▶ tables, results.json, ratios.svg

Every measured command is a whole process, from its start to its end: wall time, user and system time, and the
largest resident memory of any process of its tree. A peer (`peers/`) runs in an environment of its own, made here by
pip; ours runs with the interpreter that runs this. Before each run its output is removed, what is not yet on disk is
flushed and its input is read once, so that all begin alike. Rounds interleave the commands, and ratios are taken
within a round, so that a slow minute of the machine strikes both sides. All IDs written are read back and compared,
outside the measured time. `--stages` shows where our own time goes instead.

Ours does more than any peer in its time: it keeps text, tokens, IDs and two columns of windows, hashes every file and
flushes it to disk.
"""
