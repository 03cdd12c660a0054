"""One file by https, trusted by its checksum alone.

    https://example.org/a.jsonl#sha256=9f86…  ──▶  data/downloads/9f86…/a.jsonl

The name on this disk holds the checksum, so a file that is there need not be fetched again. A download goes to a
temporary file and gets its name when its checksum is right; what a killed run leaves of one goes with the next. What
breaks off is tried again, from where it broke where the server can. Every address on the way is looked at, redirects
included: only https, no user or password, and no machine of a private network, by the address that was really connected
to (`corpus.allow_private_hosts=true` allows those). Through a proxy that the environment names only the name of the host
can be looked at.
"""

import contextlib
import ipaddress
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from pipeline import engine
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError, IntegrityError, from_os_error
from pipeline.files import require_space
from pipeline.temporary import run_name, sweep

log = logging.getLogger(__name__)

FOLDER = Path("data", "downloads")
WORKSHOP = ".tmp"  # what is being downloaded, in folders named after their runs
CHECKSUM = re.compile(r"sha256=([0-9a-f]{64})")
ATTEMPTS = 4
REDIRECTS = 5
SECONDS = 20.0  # without a byte
PIECE = 1 << 20

Cause = TypeVar("Cause", bound=BaseException)
_serial = itertools.count()


def is_https(path: str) -> bool:
    """Is it an https address?"""
    return path[:8].lower() == "https://"


def fetch(address: str, corpus: Corpus) -> str:
    """The path of the file at `address`, which ends in `#sha256=…`, downloaded where it is not there yet.

    Raises ConfigError where the address cannot work, InputError where it cannot be had, IntegrityError where it has
    another checksum.
    """
    url, _, fragment = address.partition("#")
    if not (checksum := CHECKSUM.fullmatch(fragment)):
        raise ConfigError(f"{shown(url)!r} in corpus.paths needs its checksum: write {shown(url)}#sha256=64 hex digits.")
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path.rpartition("/")[2]))[-100:].lstrip(".") or "file"
    path = FOLDER / checksum[1] / name
    sweep(FOLDER / WORKSHOP)
    if not path.exists():
        _retrieve(url, checksum[1], path, FOLDER / WORKSHOP, corpus)
    return str(path)


def checksum(path: str) -> str | None:
    """The checksum that a file has to have because of where it lies; None where it may have any."""
    place = Path(path)
    return place.parent.name if place.parent.parent == FOLDER else None


def asset(corpus: Corpus, places: Iterable[Path]) -> str:
    """Fetch the named asset `corpus.url` into ./data. Raises as `fetch` does; InputError names every place that was tried."""
    name = corpus.paths[0]
    tried = ", ".join(repr(str(place / name)) for place in places)
    mirror = "" if "PIPELINE_ASSETS" in os.environ else " and PIPELINE_ASSETS, which is not set,"
    path, workshop = Path("data", name), Path("data", WORKSHOP)
    sweep(workshop)
    try:
        _retrieve(str(corpus.url), str(corpus.sha256), path, workshop, corpus)
    except InputError as error:
        raise InputError(
            f"corpus {corpus.name!r} is not in {tried}{mirror} and cannot be downloaded: {error} Put the file into 'data/', "
            "or set PIPELINE_ASSETS to an offline mirror."
        ) from error
    return str(path)


def shown(url: str) -> str:
    """An address as it may be shown: without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _retrieve(url: str, sha256: str, path: Path, workshop: Path, corpus: Corpus) -> None:
    import pooch

    aside = workshop / run_name(next(_serial))

    pooch.get_logger().setLevel("ERROR")
    log.info("downloading %s", shown(url))

    def downloader(url: str, output_file: Any, _: Any) -> None:
        _download(url, Path(output_file), corpus)

    try:
        pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=path.name, path=str(aside), downloader=downloader)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / path.name, path)
    except ValueError as error:
        raise IntegrityError(f"{shown(url)} does not have sha256 {sha256}: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise from_os_error(error, path) from error
    finally:
        engine.surely(lambda: shutil.rmtree(aside, ignore_errors=True))


# -- over the network -------------------------------------------------------------------------------------


def _download(url: str, path: Path, corpus: Corpus) -> None:
    """Write what is at `url` to `path`, in up to ATTEMPTS attempts."""
    import urllib3

    manager = _manager(corpus.allow_private_hosts)
    for attempt in range(ATTEMPTS):
        try:
            return _attempt(manager, url, path, corpus)
        except (urllib3.exceptions.HTTPError, _Again) as error:
            refused = _cause(error, InputError)
            if refused:
                raise refused from error
            reason = str(error) if isinstance(error, _Again) else type(_cause(error, OSError) or error).__name__
            if attempt == ATTEMPTS - 1:
                raise InputError(f"{shown(url)}: {reason}, in {ATTEMPTS} attempts.") from error
            log.warning("%s: %s, trying again", shown(url), reason)
            time.sleep(0.25 * 2**attempt)


class _Again(Exception):
    """What may go better the next time."""


def _attempt(manager: Any, url: str, path: Path, corpus: Corpus) -> None:
    have = path.stat().st_size if path.exists() else 0
    reply, url = _follow(manager, url, {"Range": f"bytes={have}-"} if have else {}, corpus)
    with contextlib.closing(reply):
        if reply.status == 416 or (have and reply.status not in (200, 206)):
            path.unlink(missing_ok=True)
        if reply.status in (408, 416, 429) or reply.status >= 500:
            raise _Again(f"the server answers {reply.status}")
        if reply.status not in (200, 206):
            raise InputError(f"{shown(url)}: the server answers {reply.status}.")
        if reply.headers.get("Content-Type", "").startswith("text/html") and not re.search(r"\.x?html?$", urlsplit(url).path):
            raise InputError(f"{shown(url)}: the server sends a web page (text/html) instead of data.")
        have = have if reply.status == 206 else 0
        most = corpus.max_download_bytes
        if (told := int(reply.headers.get("Content-Length") or 0)) + have > most:
            raise InputError(f"{shown(url)} is {told + have} bytes long, more than corpus.max_download_bytes={most}.")
        require_space(path.parent, told)
        with open(path, "ab" if have else "wb") as file:
            for piece in reply.stream(PIECE, decode_content=False):
                engine.checkpoint()
                if (have := have + len(piece)) > most:
                    raise InputError(f"{shown(url)} does not end within corpus.max_download_bytes={most}.")
                file.write(piece)


def _follow(manager: Any, url: str, headers: dict[str, str], corpus: Corpus) -> tuple[Any, str]:
    """The first reply that is no redirect, and its address."""
    for _ in range(REDIRECTS):
        _check(url, corpus.allow_private_hosts)
        headers = {"Accept-Encoding": "identity", "User-Agent": "pretraining-pipeline"} | headers
        reply = manager.request("GET", url, headers=headers, redirect=False, retries=False, preload_content=False)
        if reply.status not in (301, 302, 303, 307, 308):
            return reply, url
        url = urljoin(url, reply.headers.get("Location", ""))
        reply.close()
    raise InputError(f"{shown(url)}: more than {REDIRECTS} redirects.")


def _check(url: str, allow_private: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise InputError(f"{shown(url)}: only https:// is allowed, also where a redirect leads.")
    if parts.username is not None or parts.password is not None:
        raise InputError(f"{shown(url)}: an address may hold no user and no password.")
    with contextlib.suppress(ValueError):
        _check_host(parts.hostname, str(ipaddress.ip_address(parts.hostname)), allow_private)


def _check_host(host: str, address: str, allow_private: bool) -> None:
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    if not allow_private and not (found.is_global and not found.is_multicast):
        raise InputError(
            f"the host {host!r} ({address}) is in a private network: set corpus.allow_private_hosts=true if that is meant."
        )


def _manager(allow_private: bool) -> Any:
    """A pool of connections that looks at whom it is connected to before anything is said."""
    import ssl
    from urllib.request import getproxies

    import certifi
    import urllib3
    from urllib3.connection import HTTPSConnection

    class Connection(HTTPSConnection):
        def _new_conn(self) -> Any:
            sock = super()._new_conn()
            try:
                _check_host(self.host, sock.getpeername()[0], allow_private)
            except InputError:
                sock.close()
                raise
            return sock

    class Pool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Connection

    context = ssl.create_default_context()  # heeds SSL_CERT_FILE
    context.load_verify_locations(certifi.where())
    timeout = urllib3.Timeout(connect=SECONDS / 2, read=SECONDS)
    if proxy := getproxies().get("https"):
        return urllib3.ProxyManager(proxy, ssl_context=context, timeout=timeout)
    manager = urllib3.PoolManager(ssl_context=context, timeout=timeout)
    manager.pool_classes_by_scheme = {"https": Pool}
    return manager


def _cause(error: BaseException | None, kind: type[Cause]) -> Cause | None:
    """The nearest cause of an error that is of a kind."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None
