"""An environment of its own for a script, made by pip from what the script says it needs; peers and tests use it."""

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"


class BenchmarkError(Exception):
    """What keeps a command, or all of them, from being measured; one line for a person."""


def requirements(script: Path) -> list[str]:
    """What a script says it needs (inline script metadata, PEP 723)."""
    block = re.search(r"(?m)^# /// script\n((?:#(?: .*)?\n)+?)# ///$", script.read_text(encoding="utf-8"))
    lines = block.group(1).splitlines() if block else []
    return list(tomllib.loads("\n".join(line[2:] for line in lines)).get("dependencies", []))


def environment(script: Path, folder: Path) -> Path:
    """The interpreter of a script's environment, which is made where it is missing or was made for other needs.

    Raises BenchmarkError, with the last words of what failed, where it cannot be had.
    """
    home, needs = folder / script.stem, requirements(script)
    made, python = home / "made-for.json", home / "bin" / "python"
    wanted = json.dumps({"python": platform.python_version(), "needs": needs})
    if not made.is_file() or made.read_text() != wanted:
        print(f"environment of {script.stem}: {', '.join(needs)}", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        _quietly([sys.executable, "-m", "venv", str(home)])
        _quietly([str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *needs])
        made.write_text(wanted)
    return python


def versions(python: Path | None = None) -> dict[str, str]:
    """What is installed beside an interpreter; by default, this one."""
    if python is None:
        return {d.name: d.version for d in importlib.metadata.distributions()}
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    found: dict[str, str] = json.loads(subprocess.run([python, "-I", "-c", code], capture_output=True, check=True).stdout)
    return found


def last_words(output: str) -> str:
    """The last line that says anything."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _quietly(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(last_words(done.stdout + done.stderr))
