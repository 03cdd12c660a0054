"""What several test files share: the offline mirror, a small corpus, and the pipeline called as a function."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from pipeline import config as configs
from pipeline.cache import Cache

ROOT = Path(__file__).resolve().parents[1]
EVERYTHING = bool(os.environ.get("EVERYTHING"))  # `EVERYTHING=1 make test-all` tries all of what else is a sample


@pytest.fixture(autouse=True)
def stays() -> Iterator[None]:
    """A test leaves the process in the folder where it began: its own may be gone by then."""
    before = os.getcwd()
    yield
    assert os.getcwd() == before


@pytest.fixture(scope="session")
def assets() -> Path:
    """The offline mirror; a test that needs it is skipped where there is none."""
    folder = os.environ.get("PIPELINE_ASSETS")
    if not folder or not (Path(folder) / "corpora" / "the-verdict.txt").is_file():
        pytest.skip("needs the offline mirror: set PIPELINE_ASSETS")
    return Path(folder)


def composed(*overrides: str) -> configs.Config:
    """The configuration that these command-line overrides make, without a page: it costs more than a small run."""
    ConfigStore.instance().store(name="schema", node=configs.Config)
    with initialize_config_dir(version_base="1.3", config_dir=str(configs.conf_dir())):
        config = OmegaConf.to_object(compose("config", overrides=["output.report=false", *overrides]))
    assert isinstance(config, configs.Config)
    return config


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, **files: str | bytes) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def letters(folder: Path) -> None:
    """The corpus of the README, as its commands make it, in a folder."""
    commands = re.findall(r"^\$ (mkdir letters|printf .* > letters/.*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    subprocess.run("\n".join(commands), cwd=folder, shell=True, check=True)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open(tmp_path / "cache")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder without an offline mirror."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("PIPELINE_ASSETS", raising=False)
    return tmp_path / "here"
