"""The README and the tutorial, run: what they quote is what a reader sees.

A console block holds commands (`$ `) and what they print, a Python block code whose `print(...)  # …` comments say
what it prints, a YAML block that begins with `# path` is that file. Quoted lines must be printed, in their order;
times may differ, and `...` stands for lines left out. `<!-- assets -->` above a block says that it needs the offline
mirror. Each page runs in one empty folder, from top to bottom, first without the mirror, then what needs it.

`python tests/test_readme.py` writes what is printed today into the console blocks that leave nothing out.
"""

import contextlib
import doctest
import importlib
import io
import logging
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from conftest import ROOT
from pipeline import __version__, cli, errors, tools

PAGES = ("README.md", "docs/tutorial.md")
IN_PORTUGUESE = ("README.pt-BR.md", "docs/tutorial.pt-BR.md")
ALL = (*PAGES, *(pytest.param(page, marks=pytest.mark.slow) for page in IN_PORTUGUESE))
BLOCK = re.compile(r"(<!-- assets -->\n)?```(console|python|yaml)\n(.*?)^```$", re.S | re.M)
FOLDER = re.compile(r"'[^' ]*/(?=[^/']+' (?:bytes|rows))")  # of a source: another on each machine
TIMES = re.compile(r"(?<![\w.])\d+\.\d\d(?= |$)(?! [kMGT]?B)|\d+ (?:s|min|h|d)(?= ago)")


def blocks(page: str, assets: bool) -> Iterator[re.Match[str]]:
    for block in BLOCK.finditer((ROOT / page).read_text("utf-8")):
        if bool(block[1]) == assets:
            yield block


def commands(text: str) -> list[tuple[str, str]]:
    """Each command of a console block, as written, and what it is said to print."""
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n", text, flags=re.M)
    assert not parts[0], f"a console block begins with a command, not with {parts[0]!r}"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def ran(command: str, apart: bool = False) -> str:
    """What a command prints to stdout and stderr. Ours run in this process (unless `apart`), others in a shell."""
    command = command.replace("\\\n", " ")
    if command == "make run":
        assert "run: $(INSTALLED)\n\t$(BIN)/python -m pipeline\n" in (ROOT / "Makefile").read_text()
        command = "python -m pipeline"
    words = shlex.split(command)
    printed, code = io.TextIOWrapper(io.BytesIO(), "utf-8"), 0  # as a pipe has it; of a StringIO nobody knows the encoding
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        patch.setenv("COLUMNS", "100")
        root = logging.getLogger()
        patch.setattr(root, "handlers", root.handlers)
        patch.setattr(root, "level", root.level)
        try:
            if not apart and words[:3] == ["python", "-m", "pipeline"]:
                patch.setattr("sys.argv", ["pipeline", *words[3:]])
                cli.main()
            elif not apart and words[:3] == ["python", "-m", "pipeline.tools"]:
                tools.main(None, words[3:])
            elif not apart and words[:2] == ["python", "-m"] and words[2] in ("scripts.show", "scripts.cache"):
                tools.main(words[2].removeprefix("scripts."), words[3:])
            else:
                patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
                patch.setenv("PYTHONPATH", str(ROOT))
                shell = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
                print(shell.stdout.decode(), end="")
                code = shell.returncode
        except SystemExit as stop:
            code = int(stop.code or 0)
    printed.seek(0)
    said = printed.read()
    assert code == 0, f"{command} ended with {code}:\n{said}"
    return said


def executed(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def plain(text: str) -> list[str]:
    """The lines that say something, without times, folders of sources, rules and the width of gaps."""
    lines = (TIMES.sub("#", FOLDER.sub("'", " ".join(line.split()))) for line in text.splitlines())
    return [line for line in lines if line.strip(".─-+ ")]


def run_page(page: str, assets: bool, apart: bool = False) -> Iterator[tuple[str, str, str]]:
    """Run a page in the folder we are in: of each command or piece of code, what it is, what it is said to print, and prints."""
    for block in blocks(page, assets):
        kind, text = block[2], block[3]
        if kind == "console":
            for command, quoted in commands(text):
                yield command, quoted, ran(command, apart)
        elif kind == "python":
            yield text, "\n".join(re.findall(r"^print\(.*\)  # (.*)$", text, re.M)), executed(text)
        elif place := re.match(r"# (\S+\.yaml)\n", text):
            path = Path(place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")


def require(quoted: str, printed: str, what: str) -> None:
    rest = iter(plain(printed))
    for line in plain(quoted):
        assert line in rest, f"{what} does not print (any more, or in this place)\n    {line}\nbut\n{printed}"


@pytest.mark.parametrize("page", ALL)
@pytest.mark.slow
def test_what_a_page_quotes_is_what_its_commands_print(page, at, monkeypatch):
    monkeypatch.delenv("PIPELINE_ASSETS", raising=False)
    for what, quoted, printed in run_page(page, assets=False):
        require(quoted, printed, what)


@pytest.mark.parametrize("page", ALL)
@pytest.mark.slow
def test_what_a_page_quotes_of_the_verdict_holds_where_the_mirror_is(page, at, assets):
    for what, quoted, printed in run_page(page, assets=True):
        require(quoted, printed, what)


@pytest.mark.parametrize(("page", "heading"), [("README.md", "The tree"), ("README.pt-BR.md", "A árvore")])
def test_the_tree_names_every_module_and_every_group_and_nothing_else(page, heading):
    tree = re.search(rf"## {heading}\n.*?```text\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)[1]
    named = set(re.findall(r"^ *(\S+)", tree, re.M))
    modules = {path.name for path in (ROOT / "pipeline").glob("*.py")} - {"__init__.py"}
    groups = {f"{path.name}/" for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert modules | groups <= named, f"missing from the tree: {sorted((modules | groups) - named)}"
    there = {p.name + "/" * p.is_dir() for folder in ("", "conf", "pipeline", "scripts", "tests", "docs", "data", ".ci")
             for p in (ROOT / folder).iterdir()}  # fmt: skip
    gone = {name for name in named if name.split("/")[-1] not in there and name not in there} - {"cache/", "runs/", "outputs/"}
    assert not gone, f"in the tree but not there: {sorted(gone)}"


@pytest.mark.parametrize("page", ["README.md", "README.pt-BR.md"])
def test_three_commands_lead_from_a_short_text_of_ones_own_to_its_page(page, at):
    block = re.search(r"^```sh\n(make install\n.*?)^```$", (ROOT / page).read_text("utf-8"), re.S | re.M)[1]
    install, prepare, look = block.splitlines()
    assert re.search(rf"^{install.removeprefix('make ')}: \$\(INSTALLED\)$", (ROOT / "Makefile").read_text(), re.M)
    (at / "mine.txt").write_text(
        "Dear Hester,\nthe ferry was late because of the fog, and the fog was late because of the ferry.\n"
    )
    assert "\nits page: outputs/mine/report.html\noutputs/mine\n" in ran(prepare.removeprefix(".venv/bin/"))
    assert (at / look.split()[1]).is_file()


def test_the_tutorial_shows_the_same_in_both_languages():
    english, portuguese = ([block[0] for block in BLOCK.finditer((ROOT / page).read_text("utf-8"))]
                           for page in ("docs/tutorial.md", "docs/tutorial.pt-BR.md"))  # fmt: skip
    assert portuguese == english


def test_the_table_of_exit_codes_holds_the_code_of_every_error():
    readme = (ROOT / "README.md").read_text("utf-8")
    for error in errors.PipelineError.__subclasses__():
        code = 130 if error is errors.Interrupted else error.exit_code
        assert re.search(rf"^\| {code}\b", readme, re.M), error


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(pipeline.__path__, "pipeline.")])
def test_the_examples_in_docstrings_are_true(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("page", [*PAGES, *IN_PORTUGUESE, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text("utf-8")):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_changelog_begins_with_the_version_of_the_package():
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1]
    assert latest == __version__ == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def rewrite(page: str) -> None:
    """Put what is printed today into the console blocks of a page that leave nothing out and are no longer true."""
    text = (ROOT / page).read_text("utf-8")
    for assets in (False, True):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for command, quoted, printed in run_page(page, assets, apart=True):
                if "..." not in quoted.splitlines() and plain(quoted) != plain(printed):
                    printed = printed.replace(f"{ROOT}/", "").replace(os.environ.get("PIPELINE_ASSETS") or "\0", "mirror")
                    lines = (line.rstrip() for line in printed.splitlines())
                    today = "".join(f"{line}\n" for line in lines if line or "scripts.show" in command)
                    old = re.escape(f"$ {command}\n{quoted}") + r"(?=\$ |```)"
                    text = re.sub(old, lambda _, new=f"$ {command}\n{today}": new, text, count=1)
    (ROOT / page).write_text(text, "utf-8")


if __name__ == "__main__":
    for each in (*PAGES, *IN_PORTUGUESE):
        rewrite(each)
