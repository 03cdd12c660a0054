"""From a text to a vector, a step at a time, on your own terminal: the chapter that this project grew from.

    python -m scripts.walkthrough                    # on the sample; needs nothing
    python -m scripts.walkthrough corpus=verdict     # on the text of the chapter

Arguments are those of `python -m pipeline`, but for what the lesson decides itself: tokenizers, windows, and where the
datasets go, which is a folder that is gone afterwards. Each step says the command that does it by hand. GPT-2's and
BERT's tokenizers are taken where they can be had, else BPE and WordPiece learned from the text itself.
"""

import contextlib
import itertools
import logging
import shlex
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from pipeline import cli, console, embedding, engine, model
from pipeline import config as configs
from pipeline.errors import ConfigError, InputError, Interrupted, PipelineError
from pipeline.show import colour, spelt
from pipeline.trace import Finished

SENTENCE = "O rato roeu a roupa do rei de Roma"
LENGTH, STEPS, FIRST = 4, 4, 10  # of a drawn window, windows drawn, tokens of a tokenizer shown
DECIDED = ("name", "plan", "output", "tokenizer", "vocabulary", "window", "split", "embedding.kind", "embedding.vectors")
TOKENIZERS = (("words", ""), ("gpt2", "bpe"), ("bert", "wordpiece"))  # and what stands in where one cannot be had


def main() -> None:
    """Walk through the steps; ends the process with the exit codes of `pipeline.errors`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__, end="")
        return
    console.setup()
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    try:
        with engine.signals(), tempfile.TemporaryDirectory() as folder:
            walk(sys.argv[1:], Path(folder))
    except Exception as error:
        sys.exit(cli.complain(cli.as_ours(error)))


def walk(given: list[str], folder: Path) -> None:
    """All steps, for a corpus that these overrides name; datasets are made in `folder`."""
    flags, overrides = configs.check_arguments(given)
    if flags:
        raise ConfigError(f"walkthrough: {flags[0]} is no override; give those of the pipeline, as in corpus=verdict.")
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if taken := [key for key in keys if key == "embedding" or key.startswith(DECIDED)]:
        raise ConfigError(f"walkthrough: the lesson decides {', '.join(taken)} itself: leave it out.")
    machine = [override for key, override in zip(keys, overrides, strict=True) if key.startswith(("cache", "engine"))]
    command = shlex.join(["python", "-m", "pipeline", *overrides, f"window.context_length={LENGTH}"])
    made: dict[str, Finished] = {}
    for wanted, instead in TOKENIZERS:
        for name in filter(None, (wanted, instead)):
            with contextlib.suppress(*((PipelineError,) if name == wanted and instead else ())):
                made[name] = prepare(folder / name, *overrides, f"tokenizer={name}", f"window.context_length={LENGTH}",
                                     "window.stride=1", "embedding.vectors=never")  # fmt: skip
                break
    words, subwords = made["words"], list(made.values())[1]
    tokenizer = list(made)[1]
    _text(words, command)
    _tokens(made, command)
    _ids(subwords, tokenizer, command)
    _window(subwords, tokenizer, command)
    _pairs(folder, machine)
    _tensors(subwords, tokenizer, command)
    _vector(subwords, tokenizer, command)


def prepare(folder: Path, *overrides: str) -> Finished:
    """A dataset in `folder`, by the pipeline itself. Raises what a run raises, without advice that the lesson cannot take."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    from pipeline.run import run

    ConfigStore.instance().store(name="schema", node=configs.Config)
    with initialize_config_dir(version_base="1.3", config_dir=str(configs.conf_dir())):
        composed = compose("config", overrides=[*overrides, f"output.dir='{folder}'", "output.report=false"])
    try:
        run(cli.plain(composed)[0])
    except Interrupted as stop:
        raise KeyboardInterrupt from stop
    except InputError as error:
        said, short, _ = str(error).partition("; lower window.")
        if short:
            raise InputError(f"{said}: the lesson wants a longer text.") from error
        raise
    return Finished(folder)


def _width() -> int:
    """Columns of the terminal; many where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000


def _say(title: str, said: str, command: str) -> None:
    from rich.text import Text

    folded = "\n".join(textwrap.fill(line, _width(), replace_whitespace=False) for line in said.split("\n"))
    console.draw(Text(f"\n{title}\n", "bold").append(folded, "not bold"))
    console.draw(Text(f"  by hand: {command}\n", "dim"))


def _row(dataset: Finished, ids: list[int], before: int = 0) -> Any:
    """Tokens in their colours, as many as a line has room for behind `before` columns."""
    from rich.cells import cell_len
    from rich.text import Text

    ends = itertools.accumulate((cell_len(spelt(dataset, i)) + 1 for i in ids), initial=before - 1)
    return Text(" ").join(
        Text(spelt(dataset, i), colour(i)) for i, end in zip(ids, [*ends][1:], strict=True) if end <= _width()
    )


def _stream(dataset: Finished, count: int) -> list[int]:
    """The first IDs of the stream: those of the first row, and the last target of each that follows."""
    rows = [dataset.row(index) for index in range(min(dataset.rows, max(1, count - LENGTH)))]
    return [*rows[0]["input_ids"], *(row["target_ids"][-1] for row in rows)][:count]


def _home(dataset: Finished) -> str:
    """Where a run by hand puts the same dataset."""
    return f"outputs/{dataset.manifest['name']}"


def _text(dataset: Finished, command: str) -> None:
    text = b""
    for _, batch in dataset.read(range(1)):
        text += batch["text"][0].as_py().encode()
        break
    said = text.decode()
    count = dataset.manifest["ledger"]["load"]
    _say(
        "1. The text",
        f"{count['text_bytes']:,} bytes in {console.counted(count['documents'], 'document')}; it begins\n"
        f"  {console.printable(said[:72].replace(chr(10), ' '))}…",
        f"{command} tokenizer=chars",
    )


def _tokens(made: dict[str, Finished], command: str) -> None:
    from rich.text import Text

    _say(
        "2. Tokens",
        "Three ways to cut it. Words are few but their vocabulary never ends; subwords spell what is rare in pieces.",
        f"{command} tokenizer={next(iter(made))}",
    )
    for name, dataset in made.items():
        tokens = dataset.manifest["ledger"]["encode"]["tokens"]
        line = Text(f"  {name:<9} {tokens:>7,} tokens  ")
        console.draw(line.append_text(_row(dataset, _stream(dataset, FIRST), len(line))))


def _ids(dataset: Finished, name: str, command: str) -> None:
    stream = _stream(dataset, 200)
    again = next((i for place, i in enumerate(stream) if i in stream[:place]), stream[0])
    places = [place for place, i in enumerate(stream) if i == again][:2]
    _say(
        "3. IDs",
        f"The vocabulary of {name} has {len(dataset.vocabulary):,} tokens, each with a number of its own. A token keeps it "
        f"wherever it stands: {spelt(dataset, again)!r} is {again} at " + " and ".join(f"place {p}" for p in places) + ".",
        f"{command} tokenizer={name}; head {_home(dataset)}/vocabulary.json",
    )
    for i in stream[:FIRST]:
        from rich.text import Text

        console.draw(Text("  ").append(f"{spelt(dataset, i):<14}", colour(i)).append(f"{i:>7}"))


def _window(dataset: Finished, name: str, command: str) -> None:
    from rich.cells import cell_len
    from rich.text import Text

    _say(
        "4. The sliding window",
        f"A row is {LENGTH} tokens; its targets are the same, one further on. The next row begins one token later "
        f"(window.stride=1): {console.counted(dataset.rows, 'row')} in all.",
        f"{command} tokenizer={name} window.stride=1",
    )
    stream = _stream(dataset, LENGTH + STEPS)
    widths = [cell_len(spelt(dataset, i)) + 1 for i in stream]
    for index in range(min(STEPS, dataset.rows)):
        row = dataset.row(index)
        for label, ids, begin in (("input", row["input_ids"], index), ("target", row["target_ids"], index + 1)):
            line = Text(f"  row {index} {label:<7}" if label == "input" else f"        {label:<7}")
            line.append(" " * sum(widths[:begin]))
            for place, i in enumerate(ids):
                line.append(spelt(dataset, i), colour(i)).append(" " * (widths[begin + place] - cell_len(spelt(dataset, i))))
            line.rstrip()
            console.draw(line)


def _pairs(folder: Path, machine: list[str]) -> None:
    from rich.text import Text

    (folder / "rato.txt").write_text(SENTENCE, "utf-8")
    dataset = prepare(folder / "pairs", "corpus=text", f"corpus.paths=['{folder / 'rato.txt'}']", "tokenizer=words",
                      "window=prefix", "embedding=none", *machine)  # fmt: skip
    _say(
        "5. Growing pairs",
        f"A sentence of {dataset.rows + 1} tokens asks {dataset.rows} questions: given these, which comes next?",
        f"printf '{SENTENCE}' > rato.txt; python -m pipeline corpus=text 'corpus.paths=[rato.txt]' tokenizer=words "
        "window=prefix embedding=none name=rato; python -m pipeline.tools show outputs/rato --row -1",
    )
    for index in range(dataset.rows):
        row = dataset.row(index)
        line = Text("  [").append_text(_row(dataset, row["input_ids"])).append("] → ")
        console.draw(line.append_text(_row(dataset, row["target_ids"][-1:])))


def _tensors(dataset: Finished, name: str, command: str) -> None:
    from pipeline import open_dataset

    batch = next(iter(open_dataset(dataset.folder).loader(batch_size=2, shuffle=False)))
    _say(
        "6. Tensors",
        "Two rows as a training job gets them:",
        f"{command} tokenizer={name} window.stride=1; python -c 'from pipeline import open_dataset; "
        f'print(next(iter(open_dataset("{_home(dataset)}").loader(2, shuffle=False))))\'',
    )
    for column in ("input_ids", "target_ids"):
        rows = "".join(f"\n    {row}" for row in batch[column].tolist())
        console.say(f"  {column:<10} {list(batch[column].shape)} {batch[column].dtype}{rows}")


def _vector(dataset: Finished, name: str, command: str) -> None:
    table = embedding.load(dataset.file("embeddings.safetensors"))[model.TOKENS]
    token = dataset.row(0)["input_ids"][0]
    _say(
        "7. The embedding of one token",
        f"A table of {table.shape[0]:,} × {table.shape[1]}: row {token} is the vector of {spelt(dataset, token)!r}. Its "
        "numbers are random until a model learns them.",
        f"{command} tokenizer={name} embedding.embedding_dim={table.shape[1]}",
    )
    console.say("  " + " ".join(f"{value:+.3f}" for value in table[token][:8].tolist()) + " …")


if __name__ == "__main__":
    main()
