"""The folder an export is written to: every file is hashed while it is written, and flushed to the disk."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.files import HashingFile, Json

MANIFEST = "export.json"


class Target:
    """Files that are written once, in order, at `place`, which will become `folder`. `files` is what they came to."""

    def __init__(self, place: Path, folder: Path) -> None:
        self._place, self._folder = place, folder
        self.files: Json = {}

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """A new file; noted with its size and sha256 when the block ends well."""
        path = self._place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = HashingFile(path, self._folder / name)
        try:
            yield file
            self.files[name] = file.finish()
        finally:
            file.close()

    def text(self, name: str, data: bytes) -> None:
        """A small file by content."""
        with self.create(name) as file:
            file.write(data)
