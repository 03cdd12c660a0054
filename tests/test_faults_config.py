"""Bad configurations, by the rows of the fault catalogue: the exit code, one line that names key and way out, and
nothing written, run or left behind."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import cli
from pipeline import config as configs
from pipeline.errors import ConfigError

Ends = Callable[..., tuple[int, str]]
TINY = ["tokenizer=bytes", "embedding=none", "window.context_length=16"]


@pytest.fixture
def ends(at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ends:
    """The command line as a function: its exit code and what it says on stderr."""
    monkeypatch.setattr("sys.argv", ["pipeline"])

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.exit_code(list(arguments))
        return code, capsys.readouterr().err

    return run


def one_line(err: str) -> str:
    """The error, once it is one line and no traceback."""
    lines = [line for line in err.splitlines() if not line.startswith(("job ", "encode: ", "embed: ", "tokenize: "))]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def written(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "data/runs" not in str(p))


@pytest.fixture
def choices(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[str]]:
    """Write a YAML choice into a folder of one's own; the arguments that select it."""

    def write(group: str, text: str) -> list[str]:
        folder = tmp_path_factory.mktemp("conf")
        (folder / group).mkdir()
        (folder / group / "mine.yaml").write_text(text)
        return ["--config-dir", str(folder), f"{group}=mine"]

    return write


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["window.stride=0"], r"window.stride=0 is outside the allowed range 1 to", id="C11-zero"),
        pytest.param(["window.stride=-1"], r"window.stride=-1 is outside the allowed range 1 to", id="C11-negative"),
        pytest.param(["window.stride=1.5"], r"window.stride=1.5: .*'float'.*Integer", id="C11-float"),
        pytest.param(["window.stride=abc"], r"window.stride=abc: .*'str'.*Integer", id="C11-word"),
        pytest.param(["window.stride=512"], r"50 % of the tokens would be skipped.*window.allow_gaps=true", id="C12"),
        pytest.param(["window.stride=1000000000000"], r"larger than window.context_length=256", id="C13-stride"),
        pytest.param(["window.context_length=1000000000000"], r"outside the allowed range 1 to", id="C13-context"),
        pytest.param(["window.strid=5"], r"unknown key 'strid' in 'window.strid'; did you mean 'stride'\?", id="C14-plain"),
        pytest.param(["+window.strid=5"], r"did you mean 'stride'\?", id="C14-plus"),
        pytest.param(["++window.strid=5"], r"did you mean 'stride'\?", id="C14-force"),
        pytest.param(["~window.strid"], r"did you mean 'stride'\?", id="C14-delete"),
        pytest.param(["windw.stride=5"], r"unknown key 'windw'.*did you mean 'window'\?", id="C14-group"),
        pytest.param(["window.stride.x=5"], r"window.stride is a value, not a group", id="C14-too-deep"),
        pytest.param(["window={strid: 5}"], r"unknown key 'strid' in 'window.strid'", id="C14-in-a-mapping"),
        pytest.param(["window.mode=null"], r"window.mode=null: it may not be null", id="C15-null"),
        pytest.param(["window.mode=slidng"], r"window.mode='slidng' is not one of .* Did you mean sliding\?", id="C15-choice"),
        pytest.param(["window.stride=???"], r"window.stride: .*missing mandatory value", id="C15-missing"),
        pytest.param(["window.stride=${nope}"], r"window.stride: Interpolation key 'nope' not found", id="C15-interpolation"),
        pytest.param(["--x\x1b[31m"], r"'--x\\x1b\[31m' is no option", id="C24-option"),
        pytest.param(["window.stride=${oc.env:NO_SUCH}"], r"window.stride: .*'NO_SUCH' not found", id="C15-environment"),
        pytest.param(
            ["window.stride=${window.context_length}", "window.context_length=${window.stride}"],
            r"window.context_length: Recursive interpolation",
            id="C15-cycle",
        ),
        pytest.param(["corpus.paths=my.txt"], r"it must be a list, as in corpus.paths=\[", id="C15-list"),
        pytest.param(["window"], r"'window' has no value: write window=VALUE", id="C15-no-value"),
        pytest.param(["output.dir=a/ü"], r"output.dir=a/ü: .*goes in quotes", id="C15-unreadable"),
        pytest.param(["engine.address=[::1]:6379"], r"""as in 'engine.address="..."'""", id="C15-brackets"),
        pytest.param(["corpus.paths=[a/ü]"], r"""as in 'corpus.paths=\["..."\]'""", id="C15-unreadable-list"),
        pytest.param(["window.stride=64,128"], r"window.stride=64,128.*--multirun", id="C15-sweep-without-m"),
        pytest.param(["tokenizer.name=gpt2"], r"means nothing to tokenizer.kind=bpe: set tokenizer=hub", id="C15-no-effect"),
        pytest.param(["tokenizer=nope"], r"'tokenizer/nope'. Choices: bert, bpe, .*words", id="C16"),
        pytest.param(["corpus=null"], r"corpus=null: a group needs one of its choices: .*jsonl, ", id="C16-null"),
        pytest.param(["+window._target_=os.system"], r"window._target_ is unsafe", id="C17-key"),
        pytest.param(["hydra.launcher._target_=os.system", "-m"], r"hydra.launcher._target_ is unsafe", id="C17-launcher"),
        pytest.param(["+hydra.callbacks.x._target_=os.system"], r"hydra.callbacks.x._target_ is unsafe", id="C17-callback"),
        pytest.param(["hydra/job_logging=default"], r"hydra.job_logging is unsafe", id="C17-logging"),
        pytest.param(["--experimental-rerun", "job.pickle"], r"--experimental-rerun .*pickle", id="C17-pickle"),
        pytest.param(["+tokenizer.trust_remote_code=true"], r"tokenizer.trust_remote_code is unsafe", id="C18"),
        pytest.param(["name=../x"], r"name='../x' may hold .*letters, digits", id="C21-name"),
        pytest.param(["name=.tmp"], r"not begin with '.'", id="C21-hidden"),
        pytest.param(["corpus.name=a/b"], r"corpus.name='a/b' may hold", id="C21-corpus"),
        pytest.param(["cache.dir=out", "output.dir=out/x"], r"may not lie one inside the other", id="A32-inside-the-cache"),
        pytest.param(["corpus=text"], r"corpus.paths is empty: name files, folders or globs", id="B25-none"),
        pytest.param(["corpus=text", "corpus.paths=['*.txt']"], r"pattern '\*.txt' \(cwd .*\) matched no files", id="B25"),
    ],
)
@pytest.mark.row("A32", "C11", "C12", "C13", "C14", "C15", "C16", "C17", "C18", "C21")
def test_a_bad_configuration_ends_with_2_and_one_line_before_anything_is_made(ends, at, arguments, said):
    code, err = ends(*arguments)
    assert code == 2
    assert re.search(said, one_line(err)), err
    assert written(at) == []


# -- code in configuration: C17, C22 ----------------------------------------------------------------------

CALLBACK = """\
# @package _global_
corpus: {name: x, paths: [sample.txt]}
hydra:
  callbacks:
    evil: {_target_: pathlib.Path.touch, self: {_target_: pathlib.Path, _args_: [CANARY]}}
"""
LOGGING = """\
# @package _global_
corpus: {name: x, paths: [sample.txt]}
hydra:
  job_logging: {root: {handlers: [f]}, handlers: {f: {class: logging.FileHandler, filename: CANARY}}}
"""


@pytest.mark.parametrize(
    ("group", "text", "said"),
    [
        pytest.param("corpus", "name: !!python/object/apply:os.system ['touch CANARY']", "line 1, column 7", id="C22"),
        pytest.param("corpus", "_target_: os.system", "corpus._target_ is unsafe", id="C17-own-group"),
        pytest.param("tokenizer", "special_tokens: [{_target_: os.system}]", "_target_ is unsafe", id="C17-in-a-list"),
        pytest.param("corpus", CALLBACK, "hydra.callbacks is unsafe", id="C17-callback"),
        pytest.param("corpus", LOGGING, "hydra.job_logging is unsafe", id="C17-logging"),
        pytest.param(
            "experiment", "# @package hydra.launcher\n_target_: pathlib.Path", "hydra.launcher._target_", id="C17-launcher"
        ),
        pytest.param("tokenizer", "hf_token: abc", "tokenizer.hf_token looks like a secret", id="C20-key-in-yaml"),
        pytest.param("corpus", "documnt: line", "In 'corpus/mine': .*did you mean 'document'", id="C14-in-yaml"),
        pytest.param("corpus", "shard_bytes: many", "corpus.shard_bytes: .*Integer", id="C15-in-yaml"),
        pytest.param("corpus", "paths: [a", r"mine.yaml line \d+, column \d+", id="C15-broken-yaml"),
        pytest.param("corpus", 'paths: ["a\\0b"]', "NUL", id="C21-nul"),
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m", "window.stride=8,16"]], ids=["run", "sweep"])
@pytest.mark.row("C14", "C15", "C17", "C20", "C21", "C22")
def test_a_yaml_file_that_is_not_plain_data_of_ours_is_refused_and_nothing_of_it_runs(
    ends, at, choices, group, text, said, sweep
):
    canary = at / "canary"
    code, err = ends(*sweep, *choices(group, text.replace("CANARY", str(canary))))
    assert code == 2 and not canary.exists()
    assert written(at) == []
    assert re.search(said, err) and "Traceback" not in err


@pytest.mark.row("C14")
def test_a_primary_config_without_our_schema_is_refused_with_2(ends, tmp_path_factory):  # C14
    folder = tmp_path_factory.mktemp("conf")
    (folder / "own.yaml").write_text("corpus: {name: a}")
    code, err = ends("--config-dir", str(folder), "-cn", "own")
    assert code == 2 and "must begin its defaults list with `schema`" in one_line(err)


# -- secrets: C19, C20 ------------------------------------------------------------------------------------

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.mark.parametrize(
    "argument",
    [
        "hf_token=s3cr3tvalue",
        "api_key=s3cr3tvalue",
        "+tokenizer.password=s3cr3tvalue",
        "corpus={hf_token: s3cr3tvalue}",
        "+hydra.job.env_set.HF_TOKEN=s3cr3tvalue",
        "corpus.text_column=" + SECRET,
        "corpus.paths=[a," + SECRET + "]",
        "corpus.text_column=AKIAABCDEFGHIJKLMNOP",
        "corpus.url=https://user:s3cr3tvalue@example.org/x",
        "corpus.url=https://s3cr3tvalue@example.org/x",
    ],
)
@pytest.mark.row("C20")
def test_C20_a_secret_among_the_arguments_is_refused_before_anything_is_written(ends, at, argument):
    code, err = ends(argument)
    assert code == 2 and "looks like a secret: put it in the environment (HF_TOKEN)" in one_line(err)
    assert not any(secret in err for secret in ("s3cr3tvalue", SECRET, "AKIAABCDEFGHIJKLMNOP"))
    assert list(at.iterdir()) == []
    if not argument.startswith("corpus={"):  # a mapping is read by Hydra; all else is refused before it starts
        with pytest.raises(ConfigError, match="looks like a secret"):
            configs.check_arguments([argument])


@pytest.mark.parametrize("sweep", [[], ["-m", "window.stride=8,16"]], ids=["run", "sweep"])
@pytest.mark.row("C20")
def test_C20_a_secret_in_a_yaml_file_reaches_no_file_and_no_message(ends, at, choices, monkeypatch, sweep):
    monkeypatch.setenv("HF_TOKEN", "0paque")
    for text in (f"text_column: {SECRET}", "# @package hydra.job\nenv_copy: [HF_TOKEN]"):
        code, err = ends(*sweep, *choices("corpus", text))
        assert code == 2 and "looks like a secret" in one_line(err) and SECRET not in err
    assert not any(word in p.read_text() for p in at.rglob("*") if p.is_file() for word in (SECRET, "0paque"))


@pytest.mark.row("C19")
def test_C19_a_value_from_the_environment_stays_unresolved_in_all_that_is_written_down(ends, at, monkeypatch):
    monkeypatch.setenv("MY_COLUMN", "s3cr3tvalue")
    assert ends("corpus.text_column=${oc.env:MY_COLUMN}", *TINY)[0] == 0
    manifest = json.loads((at / "outputs/sample/manifest.json").read_text())
    assert "${oc.env:MY_COLUMN}" in json.dumps(manifest)
    assert not any(b"s3cr3tvalue" in p.read_bytes() for p in at.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "given",
    ['corpus.exclude="${oc.env:MINE}"', 'corpus.exclude="x|${oc.env:MINE}"', 'corpus.metadata="${oc.decode:${oc.env:LIST}}"'],
)
@pytest.mark.row("C19")
def test_C19_not_even_what_makes_a_key_or_tells_why_a_stage_was_computed(ends, at, monkeypatch, given):
    monkeypatch.setenv("MINE", "s3cr3tvalue")
    monkeypatch.setenv("LIST", "[s3cr3tvalue]")
    column = "s3cr3tvalue" if "metadata" in given else "other"
    (at / "x.jsonl").write_text('{"text": "the ferry was late again", "s3cr3tvalue": "a"}\n'.replace("s3cr3tvalue", column) * 9)
    for arguments in ((), (given,), (given,)):
        code, err = ends("corpus=jsonl", "corpus.paths=[x.jsonl]", *TINY, "output.report=true", *arguments)
        assert code == 0, err
    Path("x.jsonl").unlink()
    identity = json.dumps([json.loads(p.read_text())["identity"] for p in at.glob("data/cache/load/*/manifest.json")])
    assert "${oc.env:" in identity
    assert "s3cr3tvalue" not in identity
    assert [p.name for p in at.rglob("*") if p.is_file() and b"s3cr3tvalue" in p.read_bytes() and column == "other"] == []


@pytest.mark.row("C20")
def test_C20_a_secret_that_an_interpolation_resolves_to_is_taken_out_of_the_message(ends, monkeypatch):
    monkeypatch.setenv("MY_MODE", SECRET)
    code, err = ends("window.mode=${oc.env:MY_MODE}")
    assert code == 2 and SECRET not in err and "window.mode='[redacted]' is not one of" in err


@pytest.mark.parametrize(
    "argument",
    ["tokenizer.eos_token=<s>", "tokenizer.name=org/hf_transformers", "corpus.paths=[a/my_target_file]", "hydra.verbose=true"],
)
def test_what_only_looks_a_little_like_a_secret_or_code_is_let_through(argument):
    assert configs.check_arguments(["-m", argument]) == (["-m"], [argument])


@pytest.mark.parametrize(
    "given", ["job: {env_set: {PYTHONPATH: /x}}", "job_logging: {handlers: {x: {class: logging.FileHandler, filename: f}}}"]
)
def test_a_yaml_file_may_not_have_others_load_code(ends, at, choices, given):
    code, err = ends(*choices("corpus", f"# @package hydra\n{given}"))
    assert code == 2 and "is unsafe: configuration is data here and may not name code" in one_line(err)
    assert list(at.rglob("*.arrow")) == []
    code, err = ends("+hydra.job.env_set.LD_PRELOAD=/x.so")
    assert code == 2 and "hydra.job.env_set is unsafe" in one_line(err)


def test_the_composed_configuration_as_it_is_passes_the_search_for_code_and_secrets():
    plugin = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 2}
    configs.check_tree({"tokenizer": {"eos_token": "<s>"}, "hydra": {"launcher": plugin, "job_logging": {"root": None}}})
    with pytest.raises(ConfigError, match=r"hydra.launcher.x._target_ is unsafe"):
        configs.check_tree({"hydra": {"launcher": {**plugin, "x": {"_target_": "os.system"}}}})


# -- places: A13, A32, C3, C9, C21 ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "link", "folder"])
@pytest.mark.row("A32")
def test_A32_what_is_not_ours_at_the_place_of_the_output_is_left_alone(ends, at, name):
    place = at / "out"
    elsewhere = at / "elsewhere"
    elsewhere.mkdir()
    if name == "file":
        place.write_text("thesis")
    elif name == "link":
        place.symlink_to(elsewhere)
    else:
        place.mkdir()
        (place / "thesis.tex").write_text("thesis")
    before = written(at)
    code, err = ends("output.dir=out", *TINY)
    assert code == 2 and "was not written by this pipeline: nothing was touched" in one_line(err)
    assert written(at) == before


@pytest.mark.row("A14", "A32")
def test_A32_a_place_that_cannot_be_written_is_said_before_any_work(ends, at):
    (at / "file").touch()
    code, err = ends("output.dir=file/x", *TINY)
    assert code == 5 and "'file/x'" in one_line(err) and not (at / "data/cache").exists()
    code, err = ends("cache.dir=file/x", *TINY)
    assert code == 5 and "Set cache.dir= to a folder you can write" in one_line(err)


def test_A32_what_a_killed_run_left_beside_the_jobs_of_a_sweep_is_no_strangers(ends, at):
    assert ends("-m", *TINY, "window.stride=8,16")[0] == 0
    (at / "outputs/sample/.tmp/killed").mkdir(parents=True)
    assert ends(*TINY)[0] == 0


@pytest.mark.row("A27")
def test_a_folder_of_an_unusual_name_works_and_gives_the_same_bytes(ends, at):  # A27
    strange = "sp ace ü 你\nline"
    assert ends(*TINY, "output.dir=plain")[0] == 0
    code, err = ends(*TINY, f'output.dir="{strange}/out"', f'cache.dir="{strange}/cache"')
    assert code == 0, err
    assert (at / strange / "out/manifest.json").read_bytes() == (at / "plain/manifest.json").read_bytes()


@pytest.mark.row("A27")
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_in_a_folder_whose_name_is_no_unicode_it_works_and_gives_the_same_bytes(ends, at, monkeypatch, tokenizer):  # A27
    overrides = (*TINY[1:], f"tokenizer={tokenizer}", "split.validation=0.5", "selection.duplicates=near", "corpus=text")
    for name in ("plain", os.fsdecode(b"\xff")):
        (at / name).mkdir()
        monkeypatch.chdir(at / name)
        for n in range(20):
            Path(f"{n}.txt").write_text(f"the {n}th ferry was late " * n)
        code, err = ends(*overrides, 'corpus.paths=["*.txt"]')
        assert code == 0, err
    assert Path("outputs/text/manifest.json").read_bytes() == (at / "plain/outputs/text/manifest.json").read_bytes()


@pytest.mark.row("A32")
def test_A32_a_symbolic_link_to_a_dataset_is_refused_as_what_it_is(ends, at):
    assert ends(*TINY)[0] == 0
    (at / "latest").symlink_to("outputs/sample")
    code, err = ends(*TINY, "output.dir=latest")
    assert code == 2 and "'latest' is a symbolic link" in one_line(err) and f"{str(at / 'outputs/sample')!r}" in err
    assert (at / "latest").is_symlink()


@pytest.mark.row("C3")
def test_C3_an_end_token_is_asked_for_and_there_is_none(ends):
    code, err = ends("tokenizer=words", "vocabulary.append_eos=true", "embedding=none")
    assert code == 2 and "no eos_token: set tokenizer.eos_token=, or vocabulary.append_eos=false" in one_line(err)


def test_append_eos_true_and_false_are_understood_as_yaml_and_as_text(ends, at, choices):
    for value in ("true", "false", "'true'", "True"):
        code, err = ends(*TINY, f"vocabulary.append_eos={value}")
        assert code == 0, err
    assert ends(*TINY, *choices("vocabulary", "append_eos: true"))[0] == 0


@pytest.mark.row("C9")
def test_C9_a_corpus_shorter_than_a_window_is_an_input_error_with_both_numbers(ends):
    code, err = ends(*TINY[:2], "window.context_length=100000")
    assert code == 3 and "one window needs 100001; lower window.context_length" in one_line(err)


@pytest.mark.row("C1")
def test_C1_a_tokenizer_that_is_nowhere_ends_with_6_and_the_places_that_were_tried(ends, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, err = ends("tokenizer=hub", "tokenizer.name=nobody/nothing", "embedding=none")
    assert code == 6 and "tokenizer 'nobody/nothing' not found; tried" in one_line(err)


@pytest.mark.row("C24")
def test_C24_a_file_name_with_escape_codes_never_reaches_the_terminal_raw(ends, at):
    (at / "a\x1b[31mb\nc.txt").write_bytes(b"ab\xff")
    code, err = ends("corpus=text", "corpus.paths=['*.txt']", *TINY)
    assert code == 3 and r"a\x1b[31mb\nc.txt' line 1, byte 3: 0xff is not UTF-8" in one_line(err)
