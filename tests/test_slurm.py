"""Jobs as Slurm starts them: the script of the README, and sweeps through submitit, whose local executor stands in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, composed, letters
from pipeline import cli, config
from pipeline.errors import ConfigError, ResourceError
from tests.determinism import digests

PAGES = ("README.md", "README.pt-BR.md")
SWEEP = ["-m", "window.context_length=64,0,32", "embedding=none", "output.report=false"]


def script(page: str) -> str:
    """The sbatch script of a page."""
    return re.search(r"```sh\n(#!/bin/bash\n#SBATCH.*?)```", (ROOT / page).read_text("utf-8"), re.S)[1]


def ran(at: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, timeout=100)


def test_both_pages_have_the_same_script():
    assert script(PAGES[0]) == script(PAGES[1])


@pytest.mark.slow
def test_the_script_of_the_readme_runs_as_an_array(tmp_path: Path) -> None:
    letters(tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f'export PATH="{tmp_path}/.venv/bin:{Path(sys.executable).parent}:$PATH"\n')
    (tmp_path / ".venv/bin/srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / ".venv/bin/srun").chmod(0o755)
    (tmp_path / "job.sh").write_text(script(PAGES[0]))
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script(PAGES[0])).groups())
    ids = range(first, last + 1)
    slurm = {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_COUNT": str(len(ids)), "PYTHONPATH": str(ROOT)}
    jobs = [
        subprocess.Popen(
            ["bash", "job.sh"],
            cwd=tmp_path,
            env={**os.environ, **slurm, "SLURM_ARRAY_TASK_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in ids[:3]  # the scheduler has no room for more
    ]
    said = [job.communicate(timeout=100)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    assert sum("wrote" in text for text in said) == 1, said
    line = ["corpus=text", "corpus.paths=[letters/*.txt]", "window.context_length=8"]
    assert ran(tmp_path, ["engine=serial", *line, "output.dir=alone"]).returncode == 0
    assert digests(tmp_path / "shared/letters") == digests(tmp_path / "alone")


@pytest.mark.slow
def test_an_array_that_submitit_submits_makes_one_dataset(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit", reason="needs the extra slurm")
    letters(tmp_path)
    line = ["corpus=text", "corpus.paths=[letters]", "window.context_length=8", "output.report=false"]
    command = [sys.executable, "-m", "pipeline", "engine=array", *line, "output.dir=together"]
    slurm = {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_COUNT": "3", "PYTHONPATH": str(ROOT)}
    executor = submitit.AutoExecutor(folder=tmp_path / "logs", cluster="local")
    executor.update_parameters(timeout_min=2)
    with executor.batch():
        jobs = [
            executor.submit(
                submitit.helpers.CommandFunction(
                    command, cwd=tmp_path, env={**os.environ, **slurm, "SLURM_ARRAY_TASK_ID": str(index)}
                )
            )
            for index in range(3)
        ]
    said = [job.result() for job in jobs]
    assert sum("wrote" in text for text in said) == 1, said
    assert {text.splitlines()[-1] for text in said} == {"together"}
    assert ran(tmp_path, ["engine=serial", *line, "output.dir=alone"]).returncode == 0
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


@pytest.mark.slow
def test_a_sweep_whose_jobs_run_elsewhere_tells_of_each_and_ends_with_its_code(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    done = ran(tmp_path, ["hydra/launcher=submitit_local", *SWEEP])
    assert done.returncode == 2, done.stderr
    table = done.stdout.splitlines()[2:]
    assert [line.split()[0] for line in table[:3]] == [f"window.context_length={n}" for n in (64, 0, 32)]
    assert "failed (2): window.context_length=0 is outside" in table[1] and table[-1] == "outputs/sample"
    here = ran(tmp_path, [*SWEEP, "output.dir=here"])
    assert here.returncode == 2
    assert digests(tmp_path / "outputs/sample") == digests(tmp_path / "here")


@pytest.mark.slow
def test_without_slurm_or_without_the_plugin_one_line_says_so(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    done = ran(tmp_path, ["hydra/launcher=slurm", *SWEEP])
    assert (done.returncode, done.stderr) == (5, 'error: Could not detect "srun", are you indeed on a slurm cluster?\n')


@pytest.mark.slow
def test_the_launcher_is_data_that_the_checks_let_through():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    composed()
    with initialize_config_dir(version_base="1.3", config_dir=str(config.conf_dir())):
        tree = compose("config", ["hydra/launcher=slurm", "hydra.launcher.partition=cpu"], return_hydra_config=True)
    made = OmegaConf.to_container(tree, resolve=False)
    config.check_tree(made)
    launcher = made["hydra"]["launcher"]
    assert (launcher["partition"], launcher["cpus_per_task"], launcher["array_parallelism"]) == ("cpu", 16, 64)
    launcher["_target_"] = "os.system"
    with pytest.raises(ConfigError, match="unsafe"):
        config.check_tree(made)


def test_what_submitit_raises_is_no_bug_of_ours():
    name = {"__name__": "submitit.core.utils"}
    exec("def fail():\n    raise RuntimeError('Job 7 died:\\n  out of memory')", name)
    with pytest.raises(RuntimeError) as caught:
        name["fail"]()
    said = cli.as_ours(caught.value)
    assert isinstance(said, ResourceError) and str(said) == "Job 7 died: out of memory"
    assert not isinstance(cli.as_ours(RuntimeError("ours")), ResourceError)
