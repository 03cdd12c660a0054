import itertools
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT
from pipeline import plan
from pipeline.cache import Cache
from pipeline.config import Corpus
from scripts.scaling import __main__ as door
from scripts.scaling import check, model, report, scenarios
from scripts.scaling import clock as clocks
from scripts.scaling.costs import MIB, Costs, Line, Run, contention, fit, makespan
from scripts.scaling.model import Cluster, Work
from scripts.scaling.simulate import Batch, bundled, draw, simulate

SAFE = Cluster(nodes=3, cores=2, mtbf=math.inf)


@pytest.fixture
def costs():
    return Costs(
        corpus={"bytes": 200e6, "text_bytes": 196e6, "documents": 20_000, "ids": 55e6, "rows_bytes": 220e6},
        start=0.4,
        tokenizer=0.2,
        proof=0.1,
        source=1e-9,
        ids={"parse": Line(0.001, 4e-9), "hash": Line(0.0, 1e-9), "write": Line(0.002, 1e-9)},
        windows={"window": Line(0.001, 1e-9), "write": Line(0.0, 1e-9)},
        documents=Line(1e-4, 1e-7),
        finish=Line(0.01, 1e-4),
        folder=Line(0.01, 1e-4),
        page=Line(0.1, 1e-9),
        verify=1e-9,
        stored={"load": Line(0, 1), "tokenize": Line(5e5, 0.5), "encode": Line(0, 0.5), "window": Line(0, 1)},
        contention={"1": 1.0, "2": 1.2},
        spread={"ids": [0.9, 1.0, 1.1], "windows": [0.9, 1.0, 1.1]},
        engines={"ray": Line(1.0, 0.0005)},
        memory={"base": 1e8, "plan": 400, "receipt": 1000, "sealing": 2000, "manifest": 200, "payload": 40},
        machine={"time": "now"},
    )


# -- the clock --------------------------------------------------------------------------------------------


def test_spans_own_the_time_in_which_they_are_innermost_and_add_up(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def passes(seconds):
        now[0] += seconds

    class Owner:
        def inner(self):
            passes(2)

        def steps(self):
            for _ in range(2):
                passes(1)
                yield self.inner()

    clock, owner = clocks.Clock(), Owner
    clock.function(owner, "inner", "inner")
    clock.generator(owner, "steps", "steps")
    with clock.span("all"):
        assert len(list(Owner().steps())) == 2
        passes(3)
    assert dict(clock.main) == {("", "inner"): 4, ("", "steps"): 2, ("", "all"): 3}
    assert not clock.others


@pytest.mark.slow
def test_a_run_looked_at_from_inside_is_the_run_and_its_spans_are_its_time(tmp_path):
    settings = [f"cache.dir={tmp_path}/cache", f"output.dir={tmp_path}/out", f"hydra.run.dir={tmp_path}/run"]
    command = [
        sys.executable,
        "-m",
        "scripts.scaling.clock",
        tmp_path / "figures.json",
        "1000000",
        "engine=serial",
        "tokenizer=bytes",
        *settings,
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    wall = time.perf_counter() - started
    found = json.loads((tmp_path / "figures.json").read_text())
    spent = {(phase, name): seconds for phase, name, seconds in found["main"]}
    assert sum(spent.values()) <= wall
    shard = [seconds for (phase, name), seconds in spent.items() if phase == "load tokenize encode" and name != "rest"]
    assert sum(shard) == pytest.approx(sum(found["shards"]["load tokenize encode"]), rel=0.5)
    assert {name for _, name in spent} >= {
        "parse",
        "tokenize",
        "encode",
        "window",
        "hash",
        "write",
        "sync",
        "publish",
        "folder",
    }
    assert (tmp_path / "out" / "manifest.json").is_file()


# -- costs and the model ----------------------------------------------------------------------------------


def test_a_line_is_found_and_is_never_below_zero():
    assert fit([10, 20, 40], [1, 2, 1], [25, 50, 85]) == Line(5.0, 2.0)
    falling = fit([10, 20], [1, 1], [20, 10])
    assert falling.fixed > 0 and falling.each == 0.0
    assert fit([10, 20], [1, 1], [5, 15]).fixed == 0.0


def test_costs_come_back_from_their_file(costs, tmp_path):
    costs.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == costs


@pytest.mark.parametrize("size", [1, 5_000_000, 17 * MIB, 20 * MIB + 99_999, 22 * MIB])
@pytest.mark.parametrize("shard_bytes", [4 * MIB, 16 * MIB])
def test_the_model_cuts_a_file_into_as_many_shards_as_the_plan(size, shard_bytes, tmp_path):
    (tmp_path / "text.jsonl").write_bytes((b"x" * 99 + b"\n") * (size // 100) + b"y" * (size % 100))
    corpus = Corpus(format="jsonl", paths=[str(tmp_path / "text.jsonl")], shard_bytes=shard_bytes)
    planned = plan.make(corpus, Cache.open(tmp_path / "cache"), False, 2)
    sizes = model.shard_sizes(size, shard_bytes)
    assert len(sizes) == len(planned.shards) and sum(sizes) == size
    assert sizes == pytest.approx([shard.bytes for shard in planned.shards], abs=200)


def test_with_one_worker_what_is_foretold_is_the_sum_of_all_parts(costs):
    told = model.foretell(costs, 100e6, 1, cores=2)
    shards = len(model.shard_sizes(100e6, 16 * MIB))
    assert told["ids"] == pytest.approx(shards * 0.003 + 100e6 * 6e-9)
    assert told["windows"] == pytest.approx(math.ceil(110e6 / (16 * MIB)) * 0.001 + 110e6 * 2e-9)
    both = model.foretell(costs, 100e6, 2, cores=2)
    assert both["ids"] == pytest.approx(
        makespan([1.2 * costs.shard("ids", s) for s in model.shard_sizes(100e6, 16 * MIB)], 2) + 0.05
    )


def test_contention_is_what_two_workers_took_over_what_they_would_alone(costs):
    ids, rows = [1.0] * 4, [1.0] * 2

    times = {"load tokenize encode": ids, "window": rows}
    walls = {"load tokenize encode": 1.5 * 2 * costs.shard("ids", 10e6) + 0.05, "window": 1.5 * costs.shard("windows", 22e6)}
    run = Run(bytes=40_000_000, shards=4, wall=1.0, stored={"window": 44_000_000}, times=times, walls=walls)
    assert contention(costs, [run]) == pytest.approx(1.5, rel=1e-3)


def test_a_phase_waits_for_what_is_shortest(costs):
    work = Work("ids", 100, compute=1.0, moved=1e9)
    free = Cluster(10, cores=4, network=1e12, storage=1e15, stream=1e9)
    assert work.alone(free) == 2.0 and work.bound(free, 0.0) == "workers" and work.within(free) == 100 * 2.0 / 40 + 2.0
    assert work.bound(free, 0.2) == "driver" and work.within(free, 0.2) == 20.0 + 2.0
    narrow, shared = replace(free, network=1e9), replace(free, storage=1e9)
    assert work.bound(narrow, 0.0) == "network" and work.within(narrow) == 10.0 + 2.0
    assert work.bound(shared, 0.2) == "storage" and work.within(shared, 0.2) == 100.0 + 2.0
    assert work.room(shared) == 2.0


def test_more_nodes_never_take_longer(costs):
    times = [sum(model.foretell_cluster(costs, Cluster(n), 1e12, 64 * MIB, 0.0).values()) for n in (1, 3, 10, 30, 100, 300)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(times))


# -- the simulation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["ray", "array"])
@pytest.mark.parametrize("nodes", [1, 2, 5])
@pytest.mark.parametrize("shards", [1, 7, 10, 64])
def test_without_failures_and_with_equal_shards_it_is_the_closed_form(engine, nodes, shards):
    cluster = replace(SAFE, nodes=nodes)
    story = simulate([Batch(np.full(shards, 3.0))] * 2, cluster, 0, engine)
    on_a_node = math.ceil(shards / nodes) if engine == "array" else shards
    workers = cluster.cores if engine == "array" else cluster.workers
    assert story.phases == pytest.approx([3.0 * math.ceil(on_a_node / workers)] * 2) and story.lost == story.failures == 0


@pytest.mark.parametrize("engine", ["ray", "array"])
def test_whatever_fails_every_shard_is_completed_once_and_a_seed_tells_the_whole_story(engine):
    """That each is completed exactly once is asserted inside, at every step."""
    cluster = replace(SAFE, nodes=4, mtbf=40.0, restart=7.0, notice=2.0)
    stories = [simulate([Batch(np.full(80, 5.0), again=0.1)] * 2, cluster, seed, engine, 9, patience=6.0) for seed in range(8)]
    again = [simulate([Batch(np.full(80, 5.0), again=0.1)] * 2, cluster, seed, engine, 9, patience=6.0) for seed in range(8)]
    assert stories == again and len({story.seconds for story in stories}) > 1
    assert all(story.failures and story.lost and story.wasted > 0 for story in stories)
    assert all(story.seconds >= 2 * 80 * 5.0 / cluster.workers for story in stories)


def test_a_lost_node_costs_no_more_than_what_it_was_at_and_its_absence():
    calm = simulate([Batch(np.full(60, 1.0))], SAFE, 0)
    for moment in (0.5, 4.2, 9.5):
        story = simulate([Batch(np.full(60, 1.0))], replace(SAFE, restart=2.0, notice=0.5), 0, kill=moment)
        assert (story.failures, story.lost) == (1, SAFE.cores)
        assert story.wasted == pytest.approx(SAFE.cores * (moment % 1))
        assert calm.seconds <= story.seconds <= calm.seconds + 0.5 + 2.0 + 1.0


def test_an_array_of_many_parts_loses_less_with_a_node_than_one_of_few():
    shards = Batch(np.full(1200, 1.0), again=0.05)
    few, many = (
        simulate([shards], replace(SAFE, restart=1e9), 0, "array", parts, 5.0, kill=150.0).seconds for parts in (3, 60)
    )
    assert 200.0 < many < few


def test_a_driver_hands_out_no_faster_than_it_can():
    story = simulate([Batch(np.full(100, 0.1), schedule=1.0)], SAFE, 0)
    assert story.seconds == pytest.approx(100.1)


def test_what_all_share_slows_all_down_alike():
    alone = simulate([Batch(np.full(12, 1.0))], SAFE, 0)
    shared = simulate([Batch(np.full(12, 1.0), room=2.0)], SAFE, 0)
    assert alone.seconds == pytest.approx(2.0) and shared.seconds == pytest.approx(6.0)
    tail = simulate([Batch(np.array([1.0, 1.0, 1.0, 3.0]), room=2.0)], SAFE, 0)
    assert tail.seconds == pytest.approx(2.0 + 2.0)  # three are through after 2 s; the last goes on alone


@pytest.mark.parametrize("storage", [1e15, 2e9])
def test_what_is_foretold_of_a_phase_bounds_the_simulation_where_nothing_fails(storage):
    work, cluster = Work("ids", 5000, 1.0, 1e9), Cluster(7, cores=3, network=1e12, stream=1e9, storage=storage, mtbf=math.inf)
    times = np.full(work.shards, work.alone(cluster))
    story = simulate([Batch(times, work.room(cluster))], cluster, 0)
    assert max(work.needs(cluster).values()) * 0.999 <= story.seconds <= work.within(cluster) * 1.001


def test_bundles_hold_all_the_work_and_drawn_times_its_sum():
    work, cluster = Work("ids", 100_000, 2.0, 0.0), Cluster(5, cores=4)
    tasks, taken, seconds, _ = bundled(work, cluster, most=1000)
    assert taken == 100 and tasks * seconds * cluster.cores == pytest.approx(work.shards * work.compute)
    times = draw(2.0, 20_000, [0.5, 1.0, 1.1, 4.0], 0, 0)
    assert times.mean() == pytest.approx(2.0, rel=0.02) and times.max() > 4.0 * 0.9
    assert (times == draw(2.0, 20_000, [0.5, 1.0, 1.1, 4.0], 0, 0)).all()


# -- the report -------------------------------------------------------------------------------------------


def test_every_table_can_be_made_from_figures_alone(costs, monkeypatch):
    monkeypatch.setattr(scenarios, "HOURS", (100,))
    monkeypatch.setattr(scenarios, "SOURCES", report.SOURCES[:1])
    monkeypatch.setattr(report, "SOURCES", report.SOURCES[:1])
    made = scenarios.all_of_them(costs, 1)
    made["scenarios"] = [scenarios.Scenario(**one) for one in json.loads(json.dumps(made["scenarios"]))]
    tables = report.blocks(costs, [], made)
    assert "| 1 TB | 1,000 |" in tables["times"] and tables["limits"].count("\n") == 3
    text = "".join(f"<!-- scaling: {name} -->\n<!-- end -->\n" for name in tables)
    assert all(table in report.fill(text, tables) for table in tables.values())


def test_the_page_holds_what_the_figures_say_and_they_are_within_what_was_asked():
    page = (ROOT / "SCALING.md").read_text()
    costs, found = Costs.load(door.HERE / "measured.json"), check.load(door.HERE / "checked.json")
    tables = report.blocks(costs, found, scenarios.load(door.HERE / "simulated.json"))
    assert report.fill(page, tables) == page and page.count("<!-- scaling: ") == len(tables)
    assert {one.workers for one in found} == {1, 2} and all(abs(one.error) <= check.ALLOWED for one in found)
    assert all(
        sum(one.foretold.values()) == pytest.approx(sum(model.foretell(costs, one.bytes, one.workers).values()), abs=0.01)
        for one in found
    )


def test_what_is_missing_ends_with_one_line_and_code_2(tmp_path, capsys):
    assert door.main(["check", "--figures", str(tmp_path)]) == 2
    assert "python -m scripts.scaling measure" in capsys.readouterr().err
    assert door.main(["measure", "--figures", str(tmp_path), "--assets", str(tmp_path)]) == 2
    assert "not in the offline mirror" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["check", "--rounds", "0"], ["simulate", "--seeds", "-1"], ["measure", "--rounds", "x"]])
def test_no_rounds_at_all_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        door.main(arguments)
    assert stop.value.code == 2 and "is no number of 1 or more" in capsys.readouterr().err


def test_a_page_that_is_not_there_is_told_in_one_line(tmp_path, capsys):
    assert door.main(["report", "--page", str(tmp_path / "page.md")]) == 2
    assert capsys.readouterr().err.startswith("error: there is no page ")


def test_a_page_whose_plots_cannot_be_drawn_stays_as_it_is_and_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    page = tmp_path / "SCALING.md"
    page.write_text("<!-- scaling: shard -->\nold\n<!-- end -->\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert door.main(["report", "--page", str(page)]) == 2
    assert "need matplotlib: pip install" in capsys.readouterr().err and "\nold\n" in page.read_text()
