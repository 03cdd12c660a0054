"""From the command line to `run`, and from its outcome to an exit code.

Arguments are looked at before Hydra starts, so that `--help` is instant and a secret is refused before anything
is written. Hydra composes and types the configuration; from `attempt` on there are only plain objects.

Exit codes: 0 done, 2 configuration, 3 input, 4 integrity, 5 environment, 6 tokenizer or model, 130/143
interrupted, 1 a bug of ours.
"""

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline import console
from pipeline.errors import ConfigError, Interrupted, PipelineError, ResourceError, from_os_error
from pipeline.output import in_order

log = logging.getLogger(__name__)

HELP = """\
Raw text to an Arrow dataset of input and target tensors, ready for pretraining. Every stage is cached.

    load -> tokenize -> map to IDs -> sliding window -> embed

Usage: python -m pipeline [GROUP=CHOICE | GROUP.KEY=VALUE ...]

Groups and their choices (each a YAML file under conf/):
{groups}

Examples:
  python -m pipeline corpus=verdict
  python -m pipeline corpus=verdict tokenizer=gpt2 window.context_length=256 window.stride=128
  python -m pipeline corpus=text corpus.paths=[my/texts] corpus.document=paragraph name=mine
  python -m pipeline corpus=jsonl corpus.paths=['logs/*.jsonl'] corpus.text_column=body tokenizer=bert embedding=none
  python -m pipeline -m corpus=verdict window.context_length=128,256 window.stride=64,128

  --cfg job            print the composed configuration and stop
  --config-dir DIR     look for your own YAML choices in DIR too
  -m, --multirun       sweep: a value with commas makes one job each; earlier stages are shared
  --hydra-help         Hydra's own flags; tab completion: eval "$(pipeline -sc install=bash)"

What came out: pipeline-tools show | cache ls | cache why | cache verify | cache gc
"""


def help_text() -> str:
    """The text of --help, with the groups as they lie in conf/."""
    lines = []
    for group in sorted(p for p in configs.conf_dir().iterdir() if p.is_dir()):
        choices = sorted(p.stem for p in group.glob("*.yaml"))
        if len(choices) > 1 or choices != ["default"]:
            lines.append(f"  {group.name:<11} {', '.join(choices)}")
        else:
            keys = [line.split(":")[0] for line in (group / "default.yaml").read_text().splitlines() if line[:1].isalpha()]
            lines.append(f"  {group.name:<11} {', '.join(f'{group.name}.{key}=' for key in keys)}")
    return HELP.format(groups="\n".join(lines))


def main() -> None:
    """The console script `pipeline` and `python -m pipeline`. Ends the process with its exit code."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_text(), end="")
        sys.exit(0)
    console.setup_logging()
    try:
        configs.check_arguments(arguments)
    except PipelineError as error:
        sys.exit(complain(error))
    sys.exit(_compose_and_run(arguments))


def _compose_and_run(arguments: list[str]) -> int:
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=configs.Config)
    jobs: list[Job] = []
    swept = _swept(arguments)

    def job(cfg: Any) -> None:
        jobs.append(attempt(cfg, swept))
        if isinstance(jobs[-1].error, Interrupted):
            raise SystemExit(jobs[-1].code)

    try:
        hydra.main(version_base="1.3", config_path=str(configs.conf_dir()), config_name="config")(job)()
    except SystemExit as stop:
        if not jobs:  # Hydra's own word on a configuration it cannot compose is exit code 1
            return 2 if stop.code == 1 else int(stop.code or 0)
    if swept is not None and len(jobs) > 1:
        _compare(jobs)
    return next((job.code for job in jobs if job.code), 0)


def _swept(arguments: list[str]) -> set[str] | None:
    """The keys that a multirun varies; None where this is a single run."""
    if not {"-m", "--multirun"} & set(arguments):
        return None
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    keys = set()
    for argument in arguments:
        try:
            for override in OverridesParser.create().parse_overrides([argument] if "=" in argument else []):
                if override.is_sweep_override():
                    keys.add(override.key_or_group)
        except HydraException:
            continue  # Hydra will say so itself
    return keys


class Job:
    """One run, or one job of a sweep: its name, and an outcome or an error."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.outcome: Any = None
        self.error: BaseException | None = None

    @property
    def code(self) -> int:
        """Its exit code."""
        if self.error is None:
            return 0
        return self.error.exit_code if isinstance(self.error, PipelineError) else 1


def attempt(cfg: Any, swept: set[str] | None) -> Job:
    """Run one composed configuration; errors are said here, in one line, and kept."""
    job = Job(_job_name(swept))
    try:
        config, recorded = plain(cfg)
        from pipeline import engine, run

        with engine.signals():
            job.outcome = run.run(config, job.name, recorded)
        _show(job.outcome)
    except KeyboardInterrupt:
        job.error = Interrupted(2)
    except MemoryError:
        job.error = ResourceError("out of memory: lower engine.workers=, corpus.shard_bytes= or embedding.max_bytes=.")
    except OSError as error:
        job.error = from_os_error(error)
    except Exception as error:
        job.error = error
    if job.error is not None:
        complain(job.error)
    return job


def plain(cfg: Any) -> tuple[configs.Config, dict[str, Any]]:
    """The composed configuration as dataclasses, and as it is to be recorded: interpolations as written, not resolved.

    Raises ConfigError, with the dotted key, for what Hydra lets through until a value is used.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_object(cfg)
        recorded = OmegaConf.to_container(cfg, resolve=False)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{key or 'configuration'}: {str(error).splitlines()[0]}") from error
    try:
        configs.check_secrets(recorded)
    except ConfigError:
        _forget_record()
        raise
    assert isinstance(config, configs.Config) and isinstance(recorded, dict)
    return config, configs.recorded({str(group): value for group, value in recorded.items()})


def _forget_record() -> None:
    """Remove what Hydra has just written down of a configuration that holds a secret."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        shutil.rmtree(HydraConfig.get().runtime.output_dir, ignore_errors=True)


def _job_name(swept: set[str] | None) -> str | None:
    """The folder of a sweep's job: the values of what is swept, as in `window.stride=64`."""
    if swept is None:
        return None
    from hydra.core.hydra_config import HydraConfig

    overrides = [o.lstrip("+~") for o in HydraConfig.get().overrides.task]
    named = [o for o in overrides if o.partition("=")[0] in swept] or overrides or ["job"]
    return ",".join(sorted(named)).replace(os.sep, "_").replace("\0", "")[:200]


def complain(error: BaseException) -> int:
    """Say on stderr what went wrong, in one line for what a person can change. Returns the exit code."""
    if isinstance(error, PipelineError):
        name = "" if isinstance(error, Interrupted) else "error: "
        print(f"{name}{console.printable(str(error))}", file=sys.stderr)
        return error.exit_code
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    print("error: this is a bug of ours; the lines above say where.", file=sys.stderr)
    return 1


def _show(outcome: Any) -> None:
    rows = [
        [s.stage, s.state, s.rows or "", s.tokens or "", console.size(s.bytes) if s.bytes else "", s.seconds or ""]
        for s in outcome.stages
    ]
    console.table("", ["stage", "", "rows", "tokens", "bytes", "seconds"], rows)
    for text in ledger_lines(outcome.ledger):
        print(text)
    print(f"{'wrote' if outcome.published else 'unchanged'} {outcome.rows:,} rows in {outcome.seconds:.2f} s")
    print(outcome.folder)


def ledger_lines(ledger: dict[str, dict[str, int]]) -> list[str]:
    """The balance of tokens for a person: what came in, what became a target, what was dropped and why."""
    lines = []
    for stage, counts in in_order(ledger):
        said = [f"{count:,} {what.replace('_', ' ')}" for what, count in sorted(counts.items()) if count and what != "rows"]
        if said:
            lines.append(f"  {stage:<9} {', '.join(said)}")
    return lines


def _compare(jobs: list[Job]) -> None:
    """One table over the jobs of a sweep."""
    rows: list[list[Any]] = []
    for job in jobs:
        if job.outcome is None:
            rows.append([job.name, "", "", "", "", f"failed ({job.code}): {job.error}"])
            continue
        outcome = job.outcome
        computed = [s.stage for s in outcome.stages if s.state != "cached"]
        counts = outcome.ledger["window"]
        said = ", ".join(computed) or "all cached"
        rows.append([job.name, outcome.rows, counts.get("targets", ""), counts.get("tail", ""), outcome.seconds, said])
    console.table("jobs", ["job", "rows", "targets", "tail", "seconds", "computed"], rows)
    done = [job.outcome.folder for job in jobs if job.outcome is not None]
    if done:
        print(os.path.dirname(done[0]) or Path("."))
