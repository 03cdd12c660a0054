"""The Ray engine, on clusters of several nodes that the tests start on this machine."""

import contextlib
import hashlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, composed
from pipeline import cache, cluster, engine, plan, workers
from pipeline.config import Engine
from pipeline.errors import InputError, ResourceError
from pipeline.run import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
needs_ray = pytest.mark.skipif(not cluster.installed(), reason="needs Ray: pip install -e '.[ray]'")


class Nodes:
    """A cluster: a head that computes nothing and nodes of two cores, each a set of processes on this machine."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ray.cluster_utils import Cluster

            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []
        self.address = self.cluster.address

    def resize(self, count: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while len(self.nodes) < count:
                self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=cluster.STORE))
            while len(self.nodes) > count:
                self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def engine(self, **more: Any) -> Engine:
        return Engine("ray", address=self.address, **more)

    def end(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.cluster.shutdown()


@pytest.fixture(scope="module")
def token() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def nodes(token: None) -> Iterator[Nodes]:
    made = Nodes()
    yield made
    cluster._disconnect()
    made.end()


# -- the verb ---------------------------------------------------------------------------------------------


def lacking(x: int) -> int:
    raise ResourceError("no credentials here")


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def fail(number: int) -> int:
    if number == 3:
        time.sleep(0.3)
    if number in (3, 5):
        raise ValueError(f"bad {number}")
    return number


def refuse(number: int) -> int:
    raise InputError("FILE line 2: no")


def die(item: tuple[int, str, str]) -> int:
    """End the worker as told: always, or while the mark is not there."""
    number, how, mark = item
    if number == 3 and not os.path.exists(mark):
        if not how.endswith("always"):
            Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def where(number: int) -> str:
    import ray

    time.sleep(0.1)
    return str(ray.get_runtime_context().get_node_id())


def folder(number: int) -> str:
    logging.getLogger("pipeline").warning("said on a node")
    return os.getcwd()


@needs_ray
def test_results_come_in_order_and_no_more_than_twice_the_slots_are_begun(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.resize(2)
    monkeypatch.chdir(tmp_path)
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(60):
            drawn.append(number)
            yield number

    for given, result in enumerate(engine.run(nodes.engine(), square, items())):
        assert result == given * given
        assert len(drawn) <= given + 1 + 2 * 2
    assert given == 59
    assert list(engine.run(nodes.engine(), square, [])) == []
    assert list(engine.run(nodes.engine(), folder, [1])) == [str(tmp_path)]  # ours, and not that of `ray start`
    assert "said on a node" in caplog.messages


@needs_ray
@pytest.mark.row("A25")
def test_a_run_ends_with_the_error_of_the_first_item_as_with_every_other_engine(nodes: Nodes) -> None:
    nodes.resize(2)
    with pytest.raises(ValueError, match="bad 3") as caught:
        list(engine.run(nodes.engine(), fail, range(9)))
    assert "while computing 3" in caught.value.__notes__
    assert 'raise ValueError(f"bad {number}")' in caught.value.__notes__[1]
    with pytest.raises(InputError, match="line 2") as expected:
        list(engine.run(nodes.engine(), refuse, range(9)))
    assert not hasattr(expected.value, "__notes__")


@needs_ray
@pytest.mark.row("A23", "A24")
def test_the_item_of_a_dead_worker_is_tried_again_and_named_where_that_does_not_help(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.resize(2)
    items = [(number, "once", str(tmp_path / "mark")) for number in range(6)]
    assert list(engine.run(nodes.engine(), die, items)) == list(range(6))
    assert [message for message in caplog.messages if "once more" in message and str(items[3]) in message]
    with pytest.raises(ResourceError, match=r"died 3 times computing \(3, 'always', 'none'\)"):
        list(engine.run(nodes.engine(), die, [(number, "always", "none") for number in range(6)]))


def hang(item: tuple[int, str, str]) -> int:
    """Be stopped, or wait without end, as told: always, or while the mark is not there."""
    number, how, mark = item
    if number == 3 and not os.path.exists(mark):
        if not how.endswith("always"):
            Path(mark).touch()
        if how.startswith("stopped"):
            os.kill(os.getpid(), signal.SIGSTOP)
        while how.startswith("waits"):
            time.sleep(60)
    if number == 4:  # no one that computes is disturbed, nor one that has nothing to do
        end = time.monotonic() + 4
        while time.monotonic() < end:
            pass
    return number


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(workers, "PATIENCE", 2.0)
    cluster._disconnect()
    yield
    cluster._disconnect()


@needs_ray
@pytest.mark.timeout(120)
@pytest.mark.row("A23", "A24")
def test_a_worker_that_hangs_is_killed_and_its_item_tried_again_and_named_where_that_does_not_help(
    nodes: Nodes, impatient: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.resize(2)
    for how in ("stopped", "waits"):
        items = [(number, how, str(tmp_path / how)) for number in range(6)]
        assert list(engine.run(nodes.engine(), hang, items)) == list(range(6))
        assert [message for message in caplog.messages if "idle for 2 s" in message and str(items[3]) in message]
    with pytest.raises(ResourceError, match=r"died 3 times computing \(3, 'stopped always', 'none'\)"):
        list(engine.run(nodes.engine(), hang, [(number, "stopped always", "none") for number in range(6)]))


@needs_ray
def test_nodes_may_come_and_go_during_a_run(nodes: Nodes) -> None:
    nodes.resize(1)
    results = engine.run(nodes.engine(), where, range(10_000))
    seen = [next(results)]

    def given(true: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not true():
            seen.append(next(results))
            assert time.monotonic() < end

    def room() -> int:
        assert cluster._cluster is not None
        return cluster._cluster.room()

    given(lambda: room() == 2)
    nodes.resize(2)
    given(lambda: room() == 4 and len(set(seen[-4:])) == 2)
    nodes.resize(1)
    given(lambda: room() == 2 and len(set(seen[-4:])) == 1)
    results.close()  # type: ignore[attr-defined]
    assert cluster._cluster is None


# -- the line ---------------------------------------------------------------------------------------------

LINE = (
    *("corpus=text", "corpus.paths=[texts]", "corpus.document=line", "corpus.shard_bytes=1500", "tokenizer.vocab_size=300"),
    *("window.context_length=16", "window.stride=8", "embedding.embedding_dim=2", "name=x"),
)


def corpus(at: Path, lines: int = 600) -> None:
    (at / "texts").mkdir(parents=True)
    text = "".join(f"the ferry {n % 7} was late again because of fog {n}, 你好\n" for n in range(lines))
    (at / "texts" / "a.txt").write_text(text, "utf-8")


def made(at: Path) -> dict[str, str]:
    """sha256 of every file of the dataset and of every entry of the cache."""
    found = {}
    for path in sorted([*(at / "outputs").rglob("*"), *(at / "data/cache").glob("*/*/*")]):
        name = path.relative_to(at)
        if path.is_file() and path.name not in ("run.json", ".lock") and "tmp" not in name.parts:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def ran(at: Path, monkeypatch: pytest.MonkeyPatch, *engine: str) -> dict[str, str]:
    """What a run in a new folder makes."""
    if not at.exists():
        corpus(at)
    monkeypatch.chdir(at)
    run(composed(*LINE, *engine))
    assert list((at / "data/cache/tmp").iterdir()) == []
    return made(at)


def published(at: Path) -> dict[str, tuple[int, int]]:
    """Which file stands behind each receipt."""
    found = {}
    for path in (at / "data/cache").glob("*/*/.*.receipt"):
        data = path.parent / path.name[1 : -len(".receipt")]
        found[str(data)] = (data.stat().st_ino, data.stat().st_mtime_ns)
    return found


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def working(at: Path) -> list[int]:
    """Processes that work in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if place.readlink() == at:
                found.append(int(place.parent.name))
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        serial = ran(tmp_path_factory.mktemp("serial") / "x", patch, "engine=serial")
        threads = ran(tmp_path_factory.mktemp("threads") / "x", patch, "engine=threads", "engine.workers=3")
        processes = ran(tmp_path_factory.mktemp("processes") / "x", patch, "engine=processes", "engine.workers=2")
    assert serial == threads == processes
    assert sum("encode" in name for name in serial) > 20
    return serial


@needs_ray
@pytest.mark.row("A29")
def test_the_same_bytes_on_one_two_and_three_nodes(
    nodes: Nodes, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (1, 2, 3):
        nodes.resize(count)
        assert ran(tmp_path / str(count), monkeypatch, "engine=ray", f"engine.address={nodes.address}") == expected


@needs_ray
@pytest.mark.row("A23")
def test_a_killed_worker_and_a_lost_node_change_no_byte(
    nodes: Nodes, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.resize(3)
    corpus(tmp_path / "x")
    before: dict[str, tuple[int, int]] = {}

    def disturb() -> None:
        until(lambda: len(published(tmp_path / "x")) >= 15)
        before.update(published(tmp_path / "x"))
        ray = [pid for pid in working(tmp_path / "x") if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")]
        for pid in ray:  # one of them may have nothing to do at this moment
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        nodes.resize(2)

    other = threading.Thread(target=disturb)
    other.start()
    try:
        assert ran(tmp_path / "x", monkeypatch, "engine=ray", f"engine.address={nodes.address}") == expected
    finally:
        other.join()
    assert before and all(Path(name).stat().st_ino == inode for name, (inode, _) in before.items())
    assert "a worker died computing shard" in caplog.text


def test_the_script_kills_a_worker_that_is_at_work_and_no_other() -> None:
    from scripts.cluster import end_at_work

    busy, idle = (subprocess.Popen(["bash", "-c", f"exec -a {name} sleep 60"]) for name in ("ray::shard", "ray::IDLE"))
    try:
        until(lambda: all(b"ray::" in Path(f"/proc/{it.pid}/cmdline").read_bytes()[:5] for it in (busy, idle)))
        assert [end_at_work(it.pid) for it in (idle, busy)] == [False, True]
        assert busy.wait(10) == -signal.SIGKILL and idle.poll() is None and not end_at_work(busy.pid)
    finally:
        for process in (busy, idle):
            process.kill()
            process.wait()


@needs_ray
@pytest.mark.row("A2")
def test_where_the_head_dies_the_run_says_so_and_the_next_one_goes_on(
    token: None, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "SILENCE", 3.0)
    cluster._disconnect()
    nodes = Nodes()
    try:
        nodes.resize(1)
        at = tmp_path / "x"
        corpus(at, 600)

        def disturb() -> None:
            until(lambda: len(published(at)) >= 15)
            nodes.end()

        other = threading.Thread(target=disturb)
        other.start()
        try:
            with pytest.raises(ResourceError, match=r"engine.address=.* is lost: .*run the same command") as caught:
                ran(at, monkeypatch, "engine=ray", f"engine.address={nodes.address}")
        finally:
            other.join()
        assert caught.value.exit_code == 5 and len(str(caught.value).splitlines()) == 1
    finally:
        nodes.end()
    before = published(at)
    assert len(before) >= 15
    assert ran(at, monkeypatch, "engine=threads") == expected
    assert all(Path(name).stat().st_ino == inode for name, (inode, _) in before.items())


@needs_ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.row("A2", "A4")
def test_a_signal_ends_the_run_and_its_workers_within_seconds(nodes: Nodes, tmp_path: Path, number: int) -> None:
    nodes.resize(1)
    at = tmp_path / "x"
    corpus(at, 5000)
    command = [sys.executable, "-m", "pipeline", *LINE, "engine=ray", f"engine.address={nodes.address}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, cwd=at, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until(lambda: len(published(at)) >= 10)
        started = time.monotonic()
        (os.kill if number == signal.SIGKILL else os.killpg)(run.pid, number)
        _, said = run.communicate(timeout=20)
        assert run.returncode == (-number if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            assert said.splitlines()[-1] == "Interrupted. What is finished is kept; rerun the same command to continue."
            assert "Traceback" not in said
            assert time.monotonic() - started < engine.GRACE
            assert list((at / "data/cache/tmp").iterdir()) == []
        until(lambda: not working(at), 15)
        assert published(at)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


# -- what cannot be used ----------------------------------------------------------------------------------


@needs_ray
def test_a_cluster_that_is_not_there_and_a_task_for_which_there_is_no_room_are_errors_in_one_line(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.resize(1)
    monkeypatch.setattr(cluster, "SILENCE", 2.0)
    with pytest.raises(ResourceError, match=r"engine.address=127.0.0.1:9\) cannot be used: nothing answers there") as caught:
        list(engine.run(Engine("ray", address="127.0.0.1:9"), square, [1]))
    assert caught.value.exit_code == 5
    with pytest.raises(
        ResourceError, match=r"engine.address=\[::1\]:9\) cannot be used: nothing answers there \(Connection refused"
    ):
        list(engine.run(Engine("ray", address="[::1]:9"), square, [1]))
    monkeypatch.setattr(cluster, "CONNECT", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ResourceError, match=r"cannot be used: its head has not answered for 8 s, and never has\."):
            list(engine.run(Engine("ray", address=address), square, [1]))
    monkeypatch.setattr(cluster, "CONNECT", 90.0)
    with pytest.raises(ResourceError, match=r"has room for a task of engine.cpus=1.0 and engine.memory=70368744177664"):
        list(engine.run(nodes.engine(memory=1 << 46), square, [1]))


@needs_ray
def test_a_node_with_other_code_or_other_folders_is_refused(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.resize(1)
    ours = cluster._versions()
    assert ours["pyarrow"] and ours["gigatoken"]
    monkeypatch.setattr(cluster, "_versions", lambda: ours | {"the code": "0"})
    with pytest.raises(ResourceError, match=r"node '.*': it has the code .*, here it is 0: install the same"):
        list(engine.run(nodes.engine(), square, [1]))
    monkeypatch.undo()
    assert list(engine.run(nodes.engine(), square, [1])) == [1]
    monkeypatch.setattr(os, "getcwd", lambda: "/nowhere")
    with pytest.raises(ResourceError, match=r"node '.*': it has no folder '/nowhere'.*shared file system"):
        list(engine.run(nodes.engine(), square, [1]))


def test_a_node_that_does_not_see_a_file_of_the_run_is_refused_and_one_that_sees_it_late_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "SEEN", 0.5)
    with pytest.raises(ResourceError, match=f"it does not see '{tmp_path}': every node needs the same shared file system"):
        cluster.seeing(tmp_path / "lease", square, 3)
    timer = threading.Timer(0.2, (tmp_path / "lease").touch)
    timer.start()
    assert cluster.seeing(tmp_path / "lease", square, 3) == 9
    timer.join()


@needs_ray
def test_what_a_node_lacks_is_said_with_its_name(nodes: Nodes) -> None:
    nodes.resize(1)
    with pytest.raises(ResourceError, match=r"node '.*': no credentials here"):
        list(engine.run(nodes.engine(), lacking, [1]))


@needs_ray
def test_what_is_large_is_hashed_by_the_nodes(nodes: Nodes, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.resize(1)
    (at / "text.jsonl").write_text('{"text": "some words"}\n' * 2000)
    asked = composed("corpus=jsonl", "corpus.paths=[text.jsonl]", "tokenizer=bytes", "embedding=none")
    asked = replace(asked, engine=nodes.engine())
    with monkeypatch.context() as patch:
        patch.setattr(plan, "LONG", 1000)
        patch.setattr(plan, "ThreadPoolExecutor", None)  # not by this process
        run(asked)
    monkeypatch.setattr(cache, "LONG", 1000)
    monkeypatch.setattr(cache, "Engine", None)
    cache._verified.clear()
    assert [stage.state for stage in run(asked).stages] == ["cached"] * 5
    (part,) = (at / "data" / "cache" / "window").glob("*/00000000.arrow")
    data = part.read_bytes()
    part.chmod(0o644)
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again = run(asked)
    assert {stage.stage: stage.state for stage in again.stages}["window"].startswith("computed")
    assert part.read_bytes() == data


# -- who may come near ------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.row("C30")
def test_a_cluster_of_our_own_has_no_dashboard_and_answers_nobody_without_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    ((token, mode, address, dashboard),) = engine.run(Engine("ray", 1, address="local"), listening, [1])
    try:
        assert mode == "token" and len(token) == 64 and "RAY_AUTH_TOKEN" not in os.environ
        if dashboard:  # what would be its address
            host, _, port = dashboard.rpartition(":")
            with pytest.raises(ConnectionError):
                socket.create_connection((host, int(port)), 5)
        assert asked(address, token) == "1 node"
        assert "uthenticat" in asked(address, "0" * 64)
    finally:
        cluster._disconnect()


def listening(number: int) -> tuple[str, str, str, str]:
    import ray

    own, dashboard = ray.get_runtime_context().gcs_address, ray._private.worker.get_dashboard_url()
    return os.environ["RAY_AUTH_TOKEN"], os.environ["RAY_AUTH_MODE"], own, dashboard or ""


def asked(address: str, token: str) -> str:
    """What the head says to somebody who asks how many nodes there are."""
    code = f"from ray._raylet import GcsClient; print(len(GcsClient({address!r}).get_all_node_info(timeout=10)), 'node')"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


def test_the_version_of_ray_that_is_asked_for_is_one_without_the_known_hole() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["ray"] == ["ray>=2.52"]  # CVE-2025-62593
