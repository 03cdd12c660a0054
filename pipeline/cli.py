"""From the command line to `run`, and from its outcome to an exit code.

Arguments are looked at before Hydra starts, so that `--help` is instant and a secret is refused before anything
is written. Hydra composes and types the configuration; from `attempt` on there are only plain objects.

Exit codes: 0 done, 2 configuration, 3 input, 4 integrity, 5 environment, 6 tokenizer or model, 130/143
interrupted, 1 a bug of ours.
"""

import contextlib
import gc
import hashlib
import logging
import os
import re
import sys
import tempfile
import textwrap
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__, balance, console, engine, guard
from pipeline import config as configs
from pipeline.errors import ConfigError, Interrupted, PipelineError, ResourceError, from_os_error

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
  python -m pipeline corpus=text 'corpus.paths=[my/texts]' corpus.document=paragraph name=mine
  python -m pipeline corpus=jsonl 'corpus.paths=[logs/*.jsonl]' corpus.text_column=body tokenizer=bert embedding=none
  python -m pipeline -m corpus=verdict window.context_length=128,256 window.stride=64,128

  plan=true            only say what it would give and cost: tokens, rows, disk, time, what will disappoint
  --cfg job            print the composed configuration and stop
  --config-dir DIR     look for your own YAML choices in DIR too
  -m, --multirun       sweep: a value with commas makes one job each; earlier stages are shared
  --hydra-help         Hydra's own flags; tab completion: eval "$(pipeline -sc install=bash)"

What came out: pipeline-tools show | trace | why | diff | doctor | cache ls | cache verify | cache gc
"""


LIBRARIES = {  # what numpy, Arrow and botocore read when they are loaded, here and in worker processes
    "OPENBLAS_NUM_THREADS": "1",  # each of its threads would spin for 0.1 s, and nothing here needs them
    "MIMALLOC_ALLOW_THP": "0",  # huge pages of which little is used are cleared all the same: 9 % of a run from Parquet
    "AWS_RETRY_MODE": "standard",  # with 3 attempts, each of them 5 times by s3fs, an S3 that does not answer is given up in
    "AWS_MAX_ATTEMPTS": "3",  # minutes; by itself botocore takes its older mode and 5
}


def help_text() -> str:
    """The text of --help, with the groups as they lie in conf/."""
    lines = []
    for group in configs.GROUPS:
        choices = configs.options(group)
        if choices == ["default"]:
            text = (configs.conf_dir() / group / "default.yaml").read_text()
            choices = [f"{group}.{line.split(':')[0]}=" for line in text.splitlines() if line[:1].isalpha()]
        lines.append(textwrap.fill(", ".join(choices), 78, initial_indent=f"  {group:<11} ", subsequent_indent=" " * 14))
    return HELP.format(groups="\n".join(lines))


def main() -> None:
    """The console script `pipeline` and `python -m pipeline`. Ends the process with its exit code."""
    arguments = sys.argv[1:]
    console.setup()
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    gc.set_threshold(500_000)  # composing and opening a tokenizer make many objects and hardly any garbage
    try:
        sys.exit(exit_code(arguments))
    finally:
        gc.freeze()  # what is left ends with the process: it need not be searched for garbage first


def exit_code(arguments: list[str]) -> int:
    """Do what the command line says, and return what the process shall end with; an error is said on stderr."""
    given = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them and ending with 1
    try:
        if {"-h", "--help"} & set(arguments):
            console.say(help_text(), end="")
            return 0
        if "--version" in arguments:
            console.say(f"pipeline {__version__}")
            return 0
        flags, overrides = configs.check_arguments(arguments)
        sys.argv = ["pipeline", *flags, *overrides]  # Hydra's parser wants the flags first
        with engine.signals(), _leaving_nothing(overrides) as more:
            sys.argv += more
            code = _compose_and_run(flags, overrides)
        console.say("", end="")  # what Hydra has printed
        return code
    except Exception as error:
        said = as_ours(error)
        if given == "1" and said is not error:
            traceback.print_exception(error)
        return complain(said)
    finally:  # whoever called us, and the processes that they start, asked for no tracebacks
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if given is not None:
            os.environ["HYDRA_FULL_ERROR"] = given


@contextlib.contextmanager
def _leaving_nothing(overrides: list[str]) -> Iterator[list[str]]:
    """Overrides that keep Hydra's own record of a look (plan=true) in a temporary folder; none for a run."""
    if not any(re.fullmatch(r"plan=(true|yes|on|1)", override.lstrip("+"), re.I) for override in overrides):
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="pipeline-plan-") as aside:
        yield [f'hydra.run.dir="{aside}"', f'hydra.sweep.dir="{aside}"']


def _compose_and_run(flags: list[str], overrides: list[str]) -> int:
    import hydra
    import hydra._internal.hydra
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.config_store import ConfigStore
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    mode_is_plain = not flags and not any(re.match(r"\+*(hydra([/@=]|\.mode)|experiment)", o) for o in overrides)

    class Checked(ConfigLoaderImpl):
        """Hydra's loader. What it composes, the job of a sweep too, is looked at before Hydra acts on it or saves it."""

        def load_configuration(self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any) -> Any:
            if mode_is_plain and not kwargs.get("validate_sweep_overrides", True):
                raise LookupError  # Hydra composes once only to read hydra.mode; where nobody sets it, that is 70 ms
            cfg = super().load_configuration(config_name, overrides, *args, **kwargs)
            if config_name is None:  # --hydra-help composes Hydra's own part alone, and that is all it may be
                if overrides:
                    raise ConfigError("--hydra-help stands alone.")
                return cfg
            if OmegaConf.get_type(cfg) is not configs.Config:
                raise ConfigError(
                    f"{config_name}.yaml must begin its defaults list with `schema`, ours and no file of that name."
                )
            configs.check_tree(OmegaConf.to_container(cfg, resolve=False))
            composed.append(cfg)
            return cfg

    ConfigStore.instance().store(name="schema", node=configs.Config)
    composed: list[Any] = []
    jobs: list[Job] = []
    process = os.getpid()

    def job(cfg: Any) -> Job:
        if os.getpid() != process:  # a launcher has brought us to another one, or to another machine
            console.setup()
        done = attempt(cfg, _job_name(overrides))
        jobs.append(done)
        if isinstance(done.error, Interrupted):
            raise SystemExit(done.code)
        return done

    class Gathering(hydra._internal.hydra.Hydra):
        """Hydra, which drops what the jobs of a sweep return, wherever they ran."""

        def multirun(self, *args: Any, **kwargs: Any) -> Any:
            batches = super().multirun(*args, **kwargs)
            jobs[:] = [done.return_value for batch in batches for done in batch]
            return batches

    vars(hydra._internal.hydra)["ConfigLoaderImpl"] = Checked  # the one door that every composition goes through
    vars(hydra._internal.hydra)["Hydra"] = Gathering
    try:
        hydra.main(version_base="1.3", config_path=str(configs.conf_dir()), config_name="config")(job)()
    except SystemExit as stop:  # argparse, --hydra-help, an interrupted job
        return int(stop.code or 0)
    except OSError as error:  # of Hydra's own record: a full disk does not say where it was met
        if error.filename or not composed:
            raise
        key = "hydra.sweep.dir" if composed[-1].hydra.mode == RunMode.MULTIRUN else "hydra.run.dir"
        raise from_os_error(error, OmegaConf.select(composed[-1], key)) from error
    if any(job.outcome or job.error for job in jobs) and jobs[0].name is not None:
        _compare(jobs)
    return next((job.code for job in jobs if job.code), 0)


def _job_name(overrides: list[str]) -> str | None:
    """The folder of a sweep's job: what separates it from the other jobs, as in `window.stride=64`. None: no sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    record = HydraConfig.get()
    if record.mode != RunMode.MULTIRUN:
        return None
    given = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(overrides)}  # the last one holds
    common = {f"{key}={o.get_value_element_as_str()}" for key, o in given.items() if not o.is_sweep_override()}
    own = {o.partition("=")[0]: o for o in record.overrides.task}
    return folder_name([o for o in own.values() if o not in common])


def folder_name(overrides: list[str]) -> str:
    """A file name for a set of overrides; where it cannot hold them as they are, a hash keeps two of them apart."""
    text = ",".join(sorted(o.lstrip("+") for o in overrides)) or "job"
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text)[:150]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass
class Job:
    """One run, or one job of a sweep: its name, and an outcome or an error."""

    name: str | None
    outcome: Any = None
    error: BaseException | None = None

    @property
    def code(self) -> int:
        """Its exit code."""
        if self.error is None:
            return 0
        return self.error.exit_code if isinstance(self.error, PipelineError) else 1


def attempt(cfg: Any, name: str | None = None) -> Job:
    """Run one composed configuration, as job `name` of a sweep; an error is said here, in one line, and kept."""
    job = Job(name)
    try:
        if name is not None:
            log.info("job %s", name)
        config, recorded = plain(cfg)
        if config.plan:
            from pipeline import estimate, foretold, run

            run.place_of(config, name)
            made = estimate.estimate(config)
            estimate.tell(made)
            foretold.remember(made.record, Path(config.cache.dir).absolute(), recorded)
            return job
        from pipeline import run

        job.outcome = run.run(config, name, recorded)
        if name is None:
            _show(job.outcome)
    except Exception as error:
        job.error = as_ours(error, bug=True)
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
    except OmegaConfBaseException as error:
        raise ConfigError(_hydra_said(error)) from error
    recorded = OmegaConf.to_container(cfg, resolve=False)
    guard.hide(recorded, OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(config, configs.Config) and isinstance(recorded, dict)
    return config, configs.recorded({str(group): value for group, value in recorded.items()})


def as_ours(error: Exception, bug: bool = False) -> Exception:
    """An exception as the PipelineError that says it to a person; itself where it is a bug of ours.

    `bug`: an exception that is no system's is one. Outside of a run it is Hydra's word on a configuration.
    """
    if stopped := engine.interrupted():
        return stopped
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError("out of memory: lower engine.workers=, corpus.shard_bytes= or embedding.max_bytes=.")
    if not bug and _launchers(error):
        return ResourceError(" ".join(str(error).split()))
    if not bug and _hydras(error):
        return ConfigError(_hydra_said(error))
    return from_os_error(error) if isinstance(error, OSError) else error


def _launchers(error: Exception) -> bool:
    """Was it raised by submitit, which starts the jobs of a sweep elsewhere?"""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("submitit")


def _hydras(error: Exception) -> bool:
    if isinstance(error, ValueError | RecursionError):
        return True
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError)


def _hydra_said(error: BaseException) -> str:
    """In one line what Hydra, OmegaConf or YAML say in many: where, what, and the choices there are."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{mark.name} line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or 'not YAML'}."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if override := getattr(error, "override", ""):
        override = override.removeprefix("++") if override.startswith("++corpus.parts.") else override  # as it was given
        key, _, value = override.partition("=")
        several = value.startswith("[") and value.endswith("]")
        quoted = f'{key}=["..."]' if several else f'{key}="..."'
        return f"{override}: not a value that Hydra can read; what is not plain letters goes in quotes, as in '{quoted}'."
    if (options := getattr(error, "options", None)) is not None:
        missing = " It comes with `pip install 'pretraining-pipeline[slurm]'`." if "/submitit_" in lines[0] else ""
        return f"{lines[0]}. Choices: {', '.join(sorted(options))}.{missing}"
    cause = error if getattr(error, "full_key", None) else error.__cause__ or error.__context__
    key = getattr(cause, "full_key", None)
    if not key:
        return " ".join(line for line in lines if not line.startswith("See https://"))
    where = f"{lines[0].split(':')[0]}: " if lines[0].startswith("In '") else ""
    if not key.startswith("hydra"):
        try:
            configs.check_key(key.partition("[")[0])
        except ConfigError as unknown:
            return where + str(unknown)
    given = lines[0].removeprefix("Error merging override ") if lines[0].startswith("Error merging") else key
    said = (getattr(cause, "msg", None) or str(cause)).splitlines()[0].rstrip(".")
    if "is not a ListConfig" in said:
        said = f"it must be a list, as in {key}=[...]"
    return f"{where}{given}: {'it may not be null' if 'not Optional' in said else said}."


def complain(error: BaseException) -> int:
    """Say on stderr what went wrong, in one line for what a person can change. Returns the exit code."""
    if isinstance(error, PipelineError):
        prefix = "" if isinstance(error, Interrupted) else "error: "
        console.tell(prefix + console.printable(guard.redacted(str(error))))
        return error.exit_code
    console.tell(guard.redacted("".join(traceback.format_exception(error))), end="")
    console.tell("error: this is a bug of ours; the lines above say where.")
    return 1


def _show(outcome: Any) -> None:
    from pipeline import output

    rows = [
        [s.stage, s.state, s.rows or "", s.tokens or "", console.size(s.bytes) if s.bytes else "", s.seconds or ""]
        for s in outcome.stages
    ]
    console.table(["stage", "state", "rows", "tokens", "bytes", "seconds"], rows)
    console.say("\n".join([*balance.lines(outcome.ledger, outcome.splits, outcome.mixture), *plan_lines(outcome)]))
    done = "wrote" if outcome.published else "there already, unchanged:"
    console.say(f"{done} {console.counted(outcome.rows, 'row')} in {outcome.seconds:.2f} s")
    _say_page(outcome.folder / output.REPORT)
    console.say(console.printable(outcome.address))


def _say_page(page: Path) -> None:
    """Where the page is, if there is one."""
    if page.exists():
        console.say(f"its page: {console.printable(str(page))}")


def plan_lines(outcome: Any) -> list[str]:
    """What plan=true had said of this run, beside what it is."""
    if not (told := outcome.plan):
        return []
    stored = sum(stage.bytes for stage in outcome.stages if stage.state != "cached")
    truths = {"token": outcome.ledger["encode"]["ids"], "row": outcome.rows}

    def counted(what: str) -> Callable[[float], str]:
        return lambda count: console.counted(round(count), what)

    said = [_beside(told[f"{what}s"], truth, counted(what)) for what, truth in truths.items()]
    said += [_beside(told["disk"], stored, console.size)] if stored else []
    return [f"  plan    had said {', '.join(said)}, {max(told['seconds'], 0.1):.1f} s"]


def _beside(guess: dict[str, float], truth: float, shown: Callable[[float], str]) -> str:
    """What was said of a count, and how far that is from the truth; nothing of how far where it was a bound."""
    value = guess["value"]
    if guess.get("low") == 0 < value:
        return f"up to {shown(value)}"
    return f"{shown(value)} ({'exact' if round(value) == truth else f'{100 * (value / max(truth, 1) - 1):+.2f} %'})"


def _report(jobs: list[Job]) -> None:
    """`sweep.html` in the folder that holds the jobs, where they lie in one and none of them did without a page."""
    folders = {job.outcome.folder.parent for job in jobs if job.outcome is not None}
    from pipeline import output
    from pipeline.temporary import run_name

    whole = all((job.outcome.folder / output.REPORT).exists() for job in jobs if job.outcome is not None)
    if len(folders) != 1 or not whole:
        return
    from pipeline import report

    told = [(job.name or "", job.outcome and job.outcome.folder, str(job.error or "")) for job in jobs]
    try:
        report.write_sweep(folder := folders.pop(), told, run_name(0))
        _say_page(folder / output.SWEEP)
    except Exception as error:
        if engine.interrupted():
            raise
        log.warning("%s: the datasets are whole, but the page could not be made: %s", folder / output.SWEEP, error)


def _compare(jobs: list[Job]) -> None:
    """One table over the jobs of a sweep, and the folder that holds them."""
    rows: list[list[Any]] = []
    for job in jobs:
        label = (job.name or "").replace(",", " ")  # may be folded at spaces
        if job.outcome is None:
            rows.append([label, "", "", "", "", "", f"failed ({job.code}): {job.error}"])
            continue
        computed = ", ".join(s.stage for s in job.outcome.stages if s.state != "cached")
        counts = sum((Counter(own["window"]) for own in job.outcome.splits.values()), Counter())
        cells = [job.outcome.rows, *(counts.get(part, "") for part in ("targets", "tail", "kept")), job.outcome.seconds]
        rows.append([label, *cells, f"computed {computed}" if computed else "all cached"])
    console.table(["job", "rows", "targets", "tail", "kept", "seconds", "outcome"], rows)
    done = {str(job.outcome.folder.parent) for job in jobs if job.outcome is not None}
    if done:
        _report(jobs)
        stored = next((job.outcome.address for job in jobs if job.outcome is not None and "://" in job.outcome.address), "")
        if stored:
            console.say(stored.rpartition("/")[0])
            return
        console.say(done.pop() if len(done) == 1 else os.path.commonpath([os.path.abspath(folder) for folder in done]))
