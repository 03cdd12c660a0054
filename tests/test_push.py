"""Pushing to the Hub, against a stub of its API on this machine that keeps what it is given."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conftest import ROOT, composed
from pipeline import tools
from pipeline.dataset import open_dataset
from pipeline.run import run


class Hub(http.server.ThreadingHTTPServer):
    """One dataset repository: its files, what was uploaded but not yet committed, and what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.created: dict = {}
        self.status = 200  # of what is asked before an upload
        self.most = 1000  # uploads that it takes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return data

    def answer(self) -> None:
        hub, data, path = self.server, self.body(), self.path.split("?")[0]
        hub.asked.append((self.command, path))
        if path.startswith("/lfs/"):
            if len(hub.objects) >= hub.most:
                self.reply({"error": "full"}, 400)
                return
            hub.objects[path.removeprefix("/lfs/")] = data
            self.reply({})
        elif (
            path != "/api/agent-harnesses"
            and path != "/api/validate-yaml"
            and self.headers["authorization"] != "Bearer hf_secret"
        ):
            self.reply({"error": "who are you?"}, 401)
        elif path == "/api/repos/create":
            hub.created = hub.created or json.loads(data)
            self.reply({"url": f"{hub.url}/datasets/user/name", "name": "user/name", "id": "1"})
        elif "/tree/" in path:
            self.reply([{"type": "file", "path": name, "size": len(held), "oid": "0" * 40} for name, held in hub.files.items()])
        elif "/preupload/" in path:
            self.reply({"files": [self.mode(file["path"]) for file in json.loads(data)["files"]]}, hub.status)
        elif path.endswith("/objects/batch"):
            self.reply({"objects": [self.upload(item) for item in json.loads(data)["objects"]]})
        elif "/commit/" in path:
            for line in data.splitlines():
                self.commit(**json.loads(line))
            self.reply({"commitOid": "0" * 40, "commitUrl": f"{hub.url}/datasets/user/name/commit/0", "success": True})
        else:
            self.reply({"id": "user/name", "sha": "0" * 40, "siblings": [], "private": True})

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def mode(self, name: str) -> dict:
        held = self.server.files.get(name)
        large = name.endswith(".arrow")
        oid = None
        if held is not None:
            oid = hashlib.sha256(held).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def upload(self, item: dict) -> dict:
        there = item["oid"] in self.server.objects
        actions = {} if there else {"actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
        return {"oid": item["oid"], "size": item["size"], **actions}

    def commit(self, key: str, value: dict) -> None:
        if key == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            self.server.files[value["path"]] = self.server.objects[value["oid"]]
        elif key == "deletedFile":
            del self.server.files[value["path"]]


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(at) -> Path:
    return run(composed("window.context_length=64", "embedding=none")).folder


def push(hub: Hub, *arguments: str, token: str = "hf_secret") -> subprocess.CompletedProcess:
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": "home", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scripts.push", "outputs/sample", *arguments]
    return subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.slow
def test_what_is_pushed_is_the_dataset_and_opens_again_and_the_same_again_commits_nothing(hub, folder):
    hub.files = {"data-99999999.arrow": b"of an earlier push", "LICENSE": b"a person's"}
    done = push(hub, "user/name")
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/datasets/user/name\n"), done.stderr
    assert hub.created["visibility"] == "private" and hub.created["type"] == "dataset"
    wanted = {name: (folder / name).read_bytes() for name in [*open_dataset(folder).manifest["files"], "manifest.json"]}
    assert hub.files == wanted | {"LICENSE": b"a person's"} and "run.json" not in wanted
    for name, data in hub.files.items():
        (path := Path("pulled") / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert len(open_dataset("pulled", verify="full")) == len(open_dataset(folder))

    import datasets

    (Path("pulled") / "state.json").unlink()  # for which it would refuse a folder, but not what lies on the Hub
    read = datasets.load_dataset(str(Path("pulled").absolute()), cache_dir="cache")
    assert read["train"]["input_ids"][:] == open_dataset(folder).batch(range(len(read["train"])))["input_ids"].tolist()

    hub.asked.clear()
    assert push(hub, "user/name", "--public").returncode == 0
    assert not [path for _, path in hub.asked if path.startswith("/lfs/") or "/commit/" in path]


@pytest.mark.slow
def test_a_push_that_was_cut_off_goes_on_where_it_was(hub, folder):
    hub.most = 1
    done = push(hub, "user/name")
    assert done.returncode == 5 and len(done.stderr.strip().splitlines()[-1]) < 300 and not hub.files
    hub.most, hub.asked = 1000, []
    assert push(hub, "user/name").returncode == 0
    arrows = [name for name in hub.files if name.endswith(".arrow")]
    assert len([path for _, path in hub.asked if path.startswith("/lfs/")]) == len(arrows) - 1 >= 1


@pytest.mark.parametrize(
    ("status", "token", "code", "said"),
    [
        (403, "hf_secret", 5, "HF_TOKEN may not write there"),
        (200, "hf_wrong", 5, "HF_TOKEN is not valid"),
        (200, "", 2, "set the environment variable HF_TOKEN"),
    ],
)
def test_a_refusal_is_one_line_without_the_token(hub, folder, status, token, code, said):
    hub.status = status
    done = push(hub, "user/name", token=token)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
    assert not token or token not in done.stderr + done.stdout


def test_a_damaged_dataset_is_not_pushed(folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    (folder / "README.md").write_text("edited")
    with pytest.raises(SystemExit) as stop:
        tools.main("push", [str(folder), "user/name"])
    assert stop.value.code == 4 and "is damaged" in capsys.readouterr().err


def test_the_card_of_a_dataset_with_splits_leads_to_the_data_of_each(at):
    import datasets

    run(composed("window.context_length=16", "embedding=none", "corpus.document=paragraph", "split.validation=0.3"))
    folder = Path("outputs/sample")
    for name in ("dataset_dict.json", "train/state.json", "validation/state.json"):
        (folder / name).unlink()
    read = datasets.load_dataset(str(folder.absolute()), cache_dir="cache")
    rows = {split: json.loads((folder / split / "manifest.json").read_text())["rows"] for split in ("train", "validation")}
    assert {split: len(part) for split, part in read.items()} == rows
