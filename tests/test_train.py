"""Training on what comes out: each framework's script with the real library, the tiny GPT, mid-epoch resumption."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from conftest import ROOT, composed
from pipeline import open_dataset
from pipeline.errors import ConfigError
from pipeline.run import run
from scripts.benchmark.environments import environment, requirements
from scripts.train.__main__ import main as tiny

SCRIPTS = ROOT / "scripts" / "train"


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """The sample corpus in small windows: 97 rows of 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sample"))
        run(composed("window.context_length=64", "embedding.embedding_dim=16", "embedding.vectors=never"))
        return Path("outputs/sample").absolute()


# -- plain torch


@pytest.mark.slow
def test_interrupted_and_resumed_the_losses_are_the_same_to_the_last_bit(sample, tmp_path):
    whole = tiny([str(sample), "--steps=30", "--batch-size=2", "--every=10"])
    begun = tiny([str(sample), "--steps=17", "--batch-size=2", "--every=7", f"--checkpoint={tmp_path / 'c.pt'}"])
    rest = tiny([str(sample), "--steps=30", "--batch-size=2", "--every=7", f"--checkpoint={tmp_path / 'c.pt'}"])
    assert begun == whole[:17] and rest == whole
    assert abs(whole[0] - np.log(1024)) < 0.2 and whole[-1] < whole[0] - 0.5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tiny_gpt_learns_the_sample_by_heart_and_draws_it(sample, tmp_path):
    pytest.importorskip("matplotlib")
    losses = tiny([str(sample), "--steps=500", f"--plot={tmp_path / 'loss.png'}"])
    assert losses[-1] < 0.5 and (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


# -- loaders of others


def test_the_order_of_rows_is_a_batch_sampler_of_torch(sample):
    data = open_dataset(sample)
    loader = data.loader(5, seed=4)
    theirs = DataLoader(data, batch_sampler=loader.batch_sampler)
    assert len(theirs) == len(loader) == 20
    assert [b["input_ids"].tolist() for b in theirs] == [b["input_ids"].tolist() for b in loader]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torchdata calls what torch has deprecated
@pytest.mark.parametrize("workers", [0, 2])
def test_the_stateful_dataloader_of_torchdata_resumes_exactly(sample, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    data = open_dataset(sample)
    whole = [batch["input_ids"].tolist() for batch in data.loader(5, seed=4)]

    def made():
        return stateful(data, batch_sampler=data.loader(5, seed=4).batch_sampler, num_workers=workers)

    for steps in (1, 7, 19):
        first = made()
        iterator = iter(first)
        begun = [next(iterator)["input_ids"].tolist() for _ in range(steps)]
        second = made()
        second.load_state_dict(first.state_dict())
        assert begun + [batch["input_ids"].tolist() for batch in second] == whole, steps


def test_numpy_batches_are_the_same_rows_in_the_stored_dtype_and_import_no_torch(sample):
    data = open_dataset(sample)
    arrays, tensors = (list(data.loader(5, seed=4, numpy=numpy)) for numpy in (True, False))
    assert {values.dtype for batch in arrays for values in batch.values()} == {np.dtype(np.uint16)}
    for one, other in zip(arrays, tensors, strict=True):
        assert {name: values.tolist() for name, values in one.items()} == {name: t.tolist() for name, t in other.items()}
    with pytest.raises(ConfigError, match="numpy=True has no workers"):
        data.loader(5, numpy=True, num_workers=1)
    code = (
        "import sys; from pipeline import open_dataset\n"
        f"assert len(list(open_dataset({str(sample)!r}).loader(5, numpy=True))) == 20; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# -- frameworks


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trainer_learns_and_resumes(sample, at):
    pytest.importorskip("accelerate")
    from scripts.train.with_trainer import main

    whole = main(sample, 10, "runs/a")
    assert len(whole) == 10 and whole[-1] < whole[0]
    begun = main(sample, 5, "runs/b")
    assert begun == whole[:5] and main(sample, 10, "runs/b", resume=True) == whole


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of lightning's own making
def test_lightning_resumes_in_mid_epoch(sample, at):
    pytest.importorskip("lightning")
    from scripts.train.with_lightning import main

    whole = main(sample, 30)
    begun = main(sample, 7, save="half.ckpt")
    assert begun == whole[:7] and main(sample, 30, checkpoint="half.ckpt") == whole[7:]
    assert len(whole) == 30 > len(open_dataset(sample)) / 4  # into the second epoch


def in_environment(script: str, *arguments: str) -> str:
    """What a script prints in the environment that is made for it."""
    python = environment(SCRIPTS / f"{script}.py", ROOT / "data" / "environments")
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [str(python), "-m", f"scripts.train.{script}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=variables)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tensorflow_trains_and_has_the_tensors_of_the_seed_chapter(sample, at, assets):
    losses = json.loads(in_environment("with_tensorflow", str(sample)).splitlines()[-1])
    assert len(losses) == 25 and losses[-1] < losses[0] - 0.1
    run(
        composed(
            "corpus=verdict", "tokenizer=bert", "window=document", "window.truncate=true",
            "embedding.embedding_dim=768", "embedding.vectors=never",
        )
    )  # fmt: skip
    printed = in_environment("with_tensorflow", "outputs/verdict")
    assert "'input_ids': ((1, 512), 'int32')" in printed and "'token_type_ids': ((1, 512), 'int32')" in printed
    assert "embeddings (30522, 768)" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jax_trains(sample):
    losses = json.loads(in_environment("with_jax", str(sample)))
    assert len(losses) == 75 and abs(losses[0] - np.log(1024)) < 0.01 and losses[-1] < losses[0] - 0.5


def test_an_extra_names_what_the_script_of_its_environment_needs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for name in ("tensorflow", "jax"):
        assert set(extras[name]) <= set(requirements(SCRIPTS / f"with_{name}.py"))
