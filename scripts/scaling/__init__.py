"""What a run costs, and what it would on many machines: `python -m scripts.scaling measure | check | simulate | report`.

    measure   costs of every part of a shard and of a run, on this machine            ─▶ measured.json   2 min
    check     whole runs with 1 and 2 workers beside what the costs foretell          ─▶ checked.json    3 min
    simulate  1 TB and 50 TB on 10, 100 and 1,000 nodes that fail, drawn from a seed  ─▶ simulated.json
    report    the tables of SCALING.md, and its plots, from these three               ─▶ SCALING.md, docs/scaling-*.svg

`measure` and `check` need the offline mirror ($PIPELINE_ASSETS); nothing else should run beside them. The other two need no
more than the figures in this folder, and `report` matplotlib (the extra `benchmark`).
"""
