"""Downloads, from an https server on loopback that misbehaves on request."""

import hashlib
import ipaddress
import itertools
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline import download, places, plan
from pipeline.cache import Cache
from pipeline.config import Config, Corpus, check, check_arguments
from pipeline.errors import ConfigError, InputError, IntegrityError

trustme = pytest.importorskip("trustme")

DATA = b"The ferry was late because of the fog.\n" * 5000
SHA = hashlib.sha256(DATA).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Answers as the path says; `asked` counts the requests, `ranges` holds what was asked of a file that breaks off."""

    asked: ClassVar[Counter[str]] = Counter()
    ranges: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked[path] += 1
        first = self.asked[path] == 1
        if path == "/data.txt" or (path == "/busy.txt" and not first):
            self.answer(DATA)
        elif path in ("/busy.txt", "/always500.txt"):
            self.answer(b"", 500)
        elif path == "/drops.txt":
            self.ranges.append(self.headers["Range"])
            start = int((self.headers["Range"] or "bytes=0-")[6:-1])
            body = DATA[start:]
            self.answer(body[: len(body) // 2] if first else body, 206 if start else 200, length=len(body))
        elif path == "/drops-without-ranges.txt":
            self.answer(DATA[:1000] if first else DATA, length=len(DATA))
        elif path == "/page.txt":
            self.answer(b"<html>please log in</html>", kind="text/html; charset=utf-8")
        elif path == "/endless.txt":
            self.send_response(200)
            self.end_headers()
            for _ in itertools.count():
                self.wfile.write(b"x" * 65536)
        elif path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", {"here": "/data.txt", "loop": "/to/loop"}.get(path[4:], TARGETS.get(path[4:], "")))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(b"", 404)

    def answer(self, data: bytes, status: int = 200, kind: str = "text/plain", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


TARGETS = {"plain": "http://example.org/data.txt", "meta": "https://169.254.169.254/latest", "file": "file:///etc/passwd"}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the server, whose certificate is trusted; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("PIPELINE_ASSETS", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Server.asked.clear()
    Server.ranges.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def corpus(*paths: str, **settings: Any) -> Corpus:
    return Corpus(paths=list(paths), allow_private_hosts=True, **settings)


def left() -> list[str]:
    """The names of all files that downloads have left."""
    return sorted(path.name for path in Path("data").rglob("*") if path.is_file()) if Path("data").is_dir() else []


def test_files_are_fetched_once_and_are_called_the_same_on_every_machine(served: str, tmp_path: Path) -> None:
    address = f"{served}/data.txt?version=2#sha256={SHA}"
    for _ in range(2):
        made = plan.make(corpus(address, document="line"), Cache.open(tmp_path / "cache"), True, 1)
        assert made.sources == (plan.Source(f"downloads/{SHA}/data.txt", len(DATA), SHA),)
    assert Server.asked == {"/data.txt": 1}


def test_a_file_that_was_tampered_with_after_its_download_is_refused(served: str, tmp_path: Path) -> None:
    (path,) = places.find(corpus(f"{served}/data.txt#sha256={SHA}"))
    Path(path).write_bytes(DATA.replace(b"late", b"soon"))
    with pytest.raises(IntegrityError, match=f"not {SHA}"):
        plan.make(corpus(f"{served}/data.txt#sha256={SHA}"), Cache.open(tmp_path / "cache"), True, 1)


def test_an_address_needs_its_checksum(served: str) -> None:
    for address in (f"{served}/data.txt", f"{served}/data.txt#sha256=12", f"{served}/data.txt#{SHA}"):
        with pytest.raises(ConfigError, match=r"needs its checksum: write .*#sha256=64 hex digits"):
            places.find(corpus(address))
    assert not Server.asked


def test_two_addresses_of_one_name_and_checksum_are_said_to_be_one_file(served: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{served}/to/../data.txt' in corpus.paths has the name and the checksum of another"
    ):
        places.find(corpus(f"{served}/data.txt#sha256={SHA}", f"{served}/to/../data.txt?key=1#sha256={SHA}"))


@pytest.mark.row("B31")
@pytest.mark.parametrize("name", ["busy.txt", "drops.txt", "drops-without-ranges.txt", "to/here"])
def test_what_fails_once_is_tried_again_and_what_breaks_off_goes_on(served: str, name: str) -> None:
    (path,) = places.find(corpus(f"{served}/{name}#sha256={SHA}"))
    assert Path(path).read_bytes() == DATA
    if name == "drops.txt":
        assert Server.ranges == [None, f"bytes={len(DATA) // 2}-"]


@pytest.mark.row("B31")
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("gone.txt", InputError, "the server answers 404"),
        ("always500.txt", InputError, "the server answers 500, in 4 attempts"),
        ("page.txt", InputError, "sends a web page .* instead of data"),
        ("endless.txt", InputError, "does not end within corpus.max_download_bytes=1000000"),
        ("data.txt", IntegrityError, f"does not have sha256 {'0' * 64}.*{SHA}"),
    ],
)
def test_what_cannot_be_had_is_an_error_and_no_part_of_it_stays(
    served: str, name: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as error:
        places.find(corpus(f"{served}/{name}#sha256={'0' * 64}", max_download_bytes=1_000_000))
    assert left() == [] and len(str(error.value).splitlines()) == 1
    assert Server.asked[f"/{name}"] == (4 if "500" in name else 1)


def test_a_file_that_is_said_to_be_too_long_is_not_begun(served: str) -> None:
    with pytest.raises(InputError, match=f"is {len(DATA)} bytes long, more than corpus.max_download_bytes=1000"):
        places.find(corpus(f"{served}/data.txt#sha256={SHA}", max_download_bytes=1000))


@pytest.mark.row("B30")
@pytest.mark.parametrize("target", ["plain", "meta", "file", "loop"])
def test_a_redirect_leads_only_where_an_address_may(served: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = download._check_host  # our server may be on loopback, what it leads to may not be private
    monkeypatch.setattr(download, "_check_host", lambda host, address, _: original(host, address, address == "127.0.0.1"))
    with pytest.raises(InputError, match="more than 5 redirects" if target == "loop" else r"only https://|private network"):
        places.find(corpus(f"{served}/to/{target}#sha256={SHA}"))
    assert left() == []


@pytest.mark.row("B30")
def test_a_private_network_is_refused_by_the_address_that_is_connected_to(served: str) -> None:
    for host in ("127.0.0.1", "localhost"):
        address = served.replace("127.0.0.1", host) + f"/data.txt#sha256={SHA}"
        with pytest.raises(InputError, match=r"is in a private network: set corpus\.allow_private_hosts=true"):
            places.find(Corpus(paths=[address]))
        assert not Server.asked
    for address in (
        "10.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "::1",
        "fe80::1%eth0",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ):
        with pytest.raises(InputError, match="private network"):
            download._check_host("host", address, False)
    for address in ("8.8.8.8", "2606:4700:4700::1111"):
        assert ipaddress.ip_address(address) and download._check_host("host", address, False) is None


@pytest.mark.row("B30")
def test_secrets_in_an_address_are_refused_before_they_are_shown(served: str) -> None:
    for address in (
        "https://me:pass@example.org/a",
        "https://example.org/a?X-Amz-Signature=abc123",
        "https://e.org/a?x=1&token=abc",
    ):
        with pytest.raises(ConfigError) as error:
            check_arguments([f"corpus.paths=[{address}]"])
        assert not {"pass", "abc"} & {word for word in ("pass", "abc") if word in str(error.value)}
    assert download.shown("https://me:pass@example.org/a?key=abc#x") == "https://example.org/a"
    with pytest.raises(InputError, match="may hold no user and no password") as refused:
        places.find(corpus(f"https://me:pass@example.org/a#sha256={SHA}"))
    assert "pass@" not in str(refused.value)


KILLED = """
import os, signal, sys
from pipeline import download
from pipeline.config import Corpus
def dying(url, path, corpus):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
download._download = dying
settings = {"paths": ["asset.txt"], "url": "https://example.org/asset.txt", "sha256": "0" * 64}
if sys.argv[1] == "asset":
    download.asset(Corpus(**settings), [])
download.fetch("https://example.org/a#sha256=" + "0" * 64, Corpus())
"""


@pytest.mark.row("B31")
@pytest.mark.parametrize("what", ["asset", "address"])
def test_what_a_killed_download_leaves_goes_with_the_next(served: str, what: str) -> None:
    root = Path(download.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", KILLED, what], env={**os.environ, "PYTHONPATH": str(root)}, timeout=60)
    assert done.returncode == -signal.SIGKILL and left()
    if what == "asset":
        settings: dict[str, Any] = {"paths": ["data.txt"], "name": "mine", "sha256": SHA, "url": f"{served}/data.txt"}
        places.find(Corpus(**settings, allow_private_hosts=True))
    else:
        places.find(corpus(f"{served}/data.txt#sha256={SHA}"))
    assert left() == ["data.txt"]


def test_a_named_asset_goes_the_same_way(served: str) -> None:
    settings: dict[str, Any] = {"paths": ["asset.txt"], "name": "mine", "sha256": SHA}
    check(Config(corpus=Corpus(**settings, url=f"{served}/data.txt")))
    with pytest.raises(InputError, match=r"corpus 'mine' is not in 'data/asset\.txt'.* cannot be downloaded: .* answers 404"):
        places.find(Corpus(**settings, url=f"{served}/gone.txt", allow_private_hosts=True))
    (path,) = places.find(Corpus(**settings, url=f"{served}/data.txt", allow_private_hosts=True))
    assert path == "data/asset.txt" and Path(path).read_bytes() == DATA


def test_a_server_that_cannot_be_trusted_or_reached_is_named(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    with pytest.raises(InputError, match="SSLCertVerificationError, in 4 attempts"):
        places.find(corpus(f"{served}/data.txt#sha256={SHA}"))
    with pytest.raises(InputError, match="ConnectionRefusedError, in 4 attempts"):
        places.find(corpus(f"https://127.0.0.1:9/data.txt#sha256={SHA}"))
