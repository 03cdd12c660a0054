"""A real HTTP server that speaks S3, on the loopback, which a test can watch and make fail."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "2",
}


class Server:
    """The server: what was asked of it, and what it shall refuse."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[tuple[str, str]] = []  # method and path, in order
        self.fails: Callable[[str, str], bool] = lambda method, path: False  # answers 500 where true

    def fetched(self, ending: str = ".arrow") -> list[str]:
        """Paths of the objects of which all or a part was read."""
        return [path for method, path in self.asked if method == "GET" and path.endswith(ending)]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server with a bucket called bucket."""
    moto_server = pytest.importorskip("moto.server", reason="needs the extra test-all")
    pytest.importorskip("s3fs", reason="needs the extra test-all")
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel("ERROR")
    inner = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
    held: list[Server] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        held[0].asked.append((method, path))
        if held[0].fails(method, path):
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return [b""]
        return inner(environ, start_response)

    running = make_server("127.0.0.1", 0, app, threaded=True)
    held.append(Server(f"http://127.0.0.1:{running.server_port}"))
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield held[0]
    finally:
        running.shutdown()
        thread.join()


@contextlib.contextmanager
def bucket(server: Server) -> Iterator[Any]:
    """An empty bucket called bucket, as a boto3 client, with credentials and address in the environment."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        server.asked.clear()
        yield client
        server.fails = lambda method, path: False
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
            for item in page.get("Contents", []):
                client.delete_object(Bucket="bucket", Key=item["Key"])
        client.delete_bucket(Bucket="bucket")
