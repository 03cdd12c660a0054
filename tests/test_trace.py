"""The thread, against a naive reference: read the file, tokenize the whole document, compare."""

import csv
import gzip
import json
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from conftest import composed
from pipeline import corpus, diff, output, show, trace
from pipeline.errors import ConfigError, IntegrityError
from pipeline.run import run

LINES = ["Dear Hester,", "the ferry was late because of the fög. 😀", "  two  spaces\tand a tab", "naïve café — 漢字かな", "x"]


def prepared_folder(*overrides: str) -> Path:
    return run(
        composed("embedding=none", "window.context_length=8", "window.stride=3", "tokenizer.vocab_size=300", *overrides)
    ).folder


def prepared(*overrides: str) -> trace.Finished:
    return trace.Finished(prepared_folder(*overrides))


def whole(dataset: trace.Finished, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The naive reference: a whole document's IDs, and where in its bytes each of them lies."""
    reader = Tokenizer.from_file(str(dataset.folder / "tokenizer" / "tokenizer.json"))
    reader.encode_special_tokens = True
    encoding = reader.encode(text, add_special_tokens=False)
    spans = [(len(text[:a].encode()), len(text[:b].encode())) for a, b in encoding.offsets]
    return encoding.ids, spans


def row_ids(dataset: trace.Finished, row: int) -> list[int]:
    columns = dataset.row(row)
    return columns["input_ids"] + columns.get("target_ids", [])[-1:]


def require_thread(dataset: trace.Finished, texts: list[str], exact: bool) -> None:
    """Every row: its pieces are its IDs; and what the whole document has in the range given is the piece.

    `exact`: no token begins or ends within a character, so the reference can tell the very bytes too.
    """
    begin, end = dataset.marks
    tok = dataset.tokenizer
    for row in range(dataset.rows):
        pieces = trace.trace(dataset, row)
        assert [i for piece in pieces for i in piece.ids] == row_ids(dataset, row)
        for piece in pieces:
            ids, spans = whole(dataset, texts[piece.document])
            marked = [tok.bos_id] * begin + ids + [tok.eos_id] * end
            assert piece.ids == marked[piece.first : piece.first + len(piece.ids)]
            if piece.text is None:
                continue
            inside = [i for i in piece.ids if i not in (tok.eos_id if end else None, tok.bos_id if begin else None)]
            low, high = piece.text
            if exact:
                assert [i for i, (a, b) in zip(ids, spans, strict=True) if low <= a and b <= high] == inside
            assert texts[piece.document].encode()[low:high].decode(errors="replace") == piece.words
            if piece.file is not None:
                data = Path(piece.path).read_bytes()[piece.file[0] : piece.file[1]]
                assert data == texts[piece.document].encode()[low:high]


@settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.sampled_from([*LINES, "", "don't", "a\u0301b"]), min_size=1, max_size=6), min_size=1, max_size=3),
    st.sampled_from(["line", "paragraph", "file"]),
    st.sampled_from(["bpe", "words", "chars", "bytes"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
@pytest.mark.slow
def test_every_row_leads_to_the_bytes_whose_tokenization_gave_it(tmp_path, monkeypatch, files, unit, kind, newline, mark):
    place = Path(str(tmp_path)) / str(len(list(tmp_path.iterdir())))
    (place / "in").mkdir(parents=True)
    monkeypatch.chdir(place)
    texts = []
    for number, lines in enumerate([*files, LINES]):
        data = newline.join(lines) + newline
        (place / "in" / f"{number}.txt").write_bytes(b"\xef\xbb\xbf" * mark + data.encode())
        if unit == "file":
            texts += [data] if data.strip() else []
        elif unit == "line":
            texts += [line for line in lines if line.strip()]
        else:
            texts += [part for part in (newline.join(run) for run in _runs(lines)) if part.strip()]
    dataset = prepared("corpus=text", "corpus.paths=[in]", f"corpus.document={unit}", f"tokenizer={kind}")
    require_thread(dataset, texts, exact=kind in ("words", "chars"))


def _runs(lines: list[str]) -> list[list[str]]:
    """Lines between blank ones."""
    runs: list[list[str]] = [[]]
    for line in lines:
        runs = [*runs, []] if not line.strip(" \t\r") else [*runs[:-1], [*runs[-1], line]]
    return runs


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "utf-16"])
def test_where_the_file_holds_other_bytes_the_range_within_the_text_is_given_alone(at, kind):
    texts = [f'{line} "quoted"\n{number}' for number, line in enumerate(LINES * 3)]
    if kind == "jsonl":
        (at / "in.jsonl").write_text("".join(json.dumps({"n": n, "text": text}) + "\n\n" for n, text in enumerate(texts)))
        dataset = prepared("corpus=jsonl", "corpus.paths=[in.jsonl]")
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), at / "in.parquet", row_group_size=4)
        dataset = prepared("corpus=parquet", "corpus.paths=[in.parquet]")
    else:
        texts = [line.strip("\n") for text in texts for line in text.split("\n")]
        (at / "in.txt").write_text("\n".join(texts), encoding="utf-16")
        dataset = prepared("corpus=text", "corpus.paths=[in.txt]", "corpus.encoding=utf-16", "corpus.document=line")
    require_thread(dataset, texts, exact=False)
    assert all(piece.file is None for row in range(dataset.rows) for piece in trace.trace(dataset, row))


@pytest.mark.parametrize("options", [["corpus.format=auto"], ["corpus.format=parquet", "corpus.max_characters=30"]])
def test_rows_of_parquet_are_found_again_however_the_run_came_to_them(at, options):
    texts = [f"{line} {number}" for number, line in enumerate(LINES * 2)]
    pq.write_table(pa.table({"text": texts}), at / "in.parquet", row_group_size=4)
    dataset = prepared("corpus=text", "corpus.paths=[in.parquet]", *options)
    kept = [text for text in texts if len(text) <= 30 or "auto" in options[0]]
    require_thread(dataset, kept, exact=False)
    assert [place.document for place in trace.find(dataset, "x 9")] == [len(kept) - 1]


def test_rows_of_a_compressed_parquet_file_are_found_again(at):
    texts = [f"{line} {number}" for number, line in enumerate(LINES * 2)]
    pq.write_table(pa.table({"text": texts}), at / "in.parquet", row_group_size=4)
    (at / "in.parquet.gz").write_bytes(gzip.compress((at / "in.parquet").read_bytes()))
    dataset = prepared("corpus=parquet", "corpus.paths=[in.parquet.gz]")
    require_thread(dataset, texts, exact=False)
    assert [place.document for place in trace.find(dataset, "x 9")] == [9]


def test_what_is_said_of_very_many_files_stands_beside_the_manifest(at, monkeypatch):
    for number in range(4):
        (at / f"{number}.txt").write_text("".join(f"{line} {n}\n" for n in range(9) for line in LINES[number:]))
    options = ("corpus=text", 'corpus.paths=["*.txt"]', "split.test=0.3", "corpus.document=line")
    made = run(composed(*options, "embedding=none", "window.context_length=8", "output.dir=usual")).folder
    usual = trace.Finished(made / "train")
    monkeypatch.setattr(output, "LISTED", 3)
    made = run(composed(*options, "embedding=none", "window.context_length=8", "output.dir=many")).folder
    dataset = trace.Finished(made / "train")
    assert dataset.manifest["sources"] == [] and dataset.sources == usual.manifest["sources"] == usual.sources
    assert [trace.trace(dataset, row) for row in range(9)] == [trace.trace(usual, row) for row in range(9)]
    whole = json.loads((at / "many/manifest.json").read_text())
    assert output.sources(at / "many", whole) == usual.sources
    assert "2.txt" in (at / "many/README.md").read_text()
    assert not diff.why(at / "usual/train", at / "many/train")


@pytest.mark.parametrize("kind", ["gz", "zip", "csv", "repaired", "auto"])
def test_the_thread_leads_through_compression_archives_columns_and_repairs(at, kind):
    texts, options = [line.strip() for line in LINES * 2], ["corpus=text", "corpus.document=line"]
    data = "\n".join(texts).encode()
    if kind == "gz":
        (at / "in.txt.gz").write_bytes(gzip.compress(data))
    elif kind == "zip":
        with zipfile.ZipFile(at / "in.zip", "w") as archive:
            archive.writestr("a.txt", "\n".join(texts[:4]))
            archive.writestr("b.txt", "\n".join(texts[4:]))
        options.append("corpus.archives=true")
    elif kind == "csv":
        with open(at / "in.csv", "w", newline="") as file:
            csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
        options = ["corpus=text", "corpus.format=csv"]
    elif kind == "repaired":
        (at / "in.txt").write_bytes(data)
        texts = [unicodedata.normalize("NFKC", text) for text in texts]
        options.append("corpus.unicode=NFKC")
    else:
        (at / "in.txt").write_bytes(data)
        options.append("corpus.format=auto")
    (name,) = (path.name for path in at.iterdir())
    dataset = prepared(f"corpus.paths=[{name}]", *options)
    require_thread(dataset, texts, exact=False)
    assert [place.document for place in trace.find(dataset, "ferry")] == [1, 6]


@pytest.mark.parametrize(
    "options",
    [
        ["window=prefix"],
        ["window=document", "window.truncate=true"],
        ["window.tail=pad"],
        ["window.cross_documents=false"],
        ["window.cross_documents=false", "window.tail=pad", "split.shuffle=windows", "split.seed=3"],
        ["window=prefix", "split.shuffle=windows"],
        ["window=document", "window.truncate=true", "split.shuffle=windows"],
        ["vocabulary.prepend_bos=true", 'tokenizer.bos_token="<s>"', "vocabulary.append_eos=false"],
    ],
)
def test_the_thread_holds_in_every_mode(at, options):
    (at / "in.txt").write_text("\n".join(LINES * 2))
    dataset = prepared("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", *options)
    begin, end = dataset.marks
    tok = dataset.tokenizer
    for row in range(dataset.rows):
        for piece in trace.trace(dataset, row):
            ids = [tok.bos_id] * begin + whole(dataset, (LINES * 2)[piece.document])[0] + [tok.eos_id] * end
            assert piece.ids == ids[piece.first : piece.first + len(piece.ids)]
            assert row in trace.Finished.rows_at(dataset, *dataset.span(row))
            kept = row_ids(dataset, row)
            assert any(kept[i : i + len(piece.ids)] == piece.ids for i in range(len(kept)))


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "documents", "windows"])
@pytest.mark.parametrize("splits", [[], ["split.validation=0.3"]])
def test_the_thread_holds_in_every_split_and_whatever_is_shuffled(at, shuffle, splits):
    (at / "in.txt").write_text("\n".join(f"{line} {n}" for n, line in enumerate(LINES * 6)))
    options = ["corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "window.context_length=8", "window.stride=3"]
    outcome = run(composed(*options, "embedding=none", "tokenizer.vocab_size=300", f"split.shuffle={shuffle}", *splits))
    data, found = (at / "in.txt").read_bytes(), 0
    for folder in [outcome.folder / split for split in ("train", "validation")] if splits else [outcome.folder]:
        dataset = trace.Finished(folder)
        spans = zip(dataset.documents["start"].tolist(), dataset.documents["end"].tolist(), strict=True)
        require_thread(dataset, [data[start:end].decode() for start, end in spans], exact=False)
        for place in trace.find(dataset, "late because"):
            found += 1
            held = [dataset.span(row) for row in range(dataset.rows)]
            holding = [row for row, (a, b) in enumerate(held) if a <= place.positions[0] and place.positions[1] <= b]
            touching = [row for row, (a, b) in enumerate(held) if a < place.positions[1] and place.positions[0] < b]
            assert list(place.rows) == (holding or touching)
    assert found == 6
    if splits:
        with pytest.raises(ConfigError, match="holds splits"):
            trace.Finished(outcome.folder)


def test_a_document_in_several_pieces_is_traced_by_reading_no_more_than_pieces_of_it(at, monkeypatch):
    monkeypatch.setattr("pipeline.batches.BLOCK", 1 << 12)
    monkeypatch.setattr("pipeline.tokenizer.LONG", 1 << 10)
    text = " ".join(f"word{i} föö" for i in range(3000))
    (at / "in.txt").write_text(text)
    dataset = prepared(
        "corpus=text", "corpus.paths=[in.txt]", "window.context_length=64", "window.stride=999", "window.allow_gaps=true"
    )
    for row in (0, dataset.rows // 2, dataset.rows - 1):
        (piece,) = trace.trace(dataset, row)
        assert text.encode()[slice(*piece.text)].decode(errors="replace") == piece.words and piece.file == piece.text
        assert piece.ids == whole(dataset, text)[0][piece.first : piece.first + len(piece.ids)]
    (place,) = trace.find(dataset, "word1500 f")
    assert place.text == (text.encode().find(b"word1500 f"), text.encode().find(b"word1500 f") + 10)


@pytest.mark.parametrize("packed", [False, True])
def test_a_phrase_is_found_by_one_reading_of_all_and_one_tokenization_of_what_holds_it(at, monkeypatch, packed):
    monkeypatch.setattr(trace, "GAP", 10)
    texts = [f"the ferry was late {n}" if n % 20 == 0 else f"nothing happened on day {n}" for n in range(200)]
    data = "\n".join(texts).encode()
    (at / "in.txt").write_bytes(gzip.compress(data) if packed else data)
    dataset = prepared("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line")
    readings, tokenized = [], []
    load, edges = corpus.load, trace.Finished._edges
    monkeypatch.setattr(corpus, "load", lambda shard, *rest: readings.append(shard.bytes) or load(shard, *rest))
    monkeypatch.setattr(trace.Finished, "_edges", lambda self, data: tokenized.append(data.decode()) or edges(self, data))
    assert len(list(trace.find(dataset, "e"))) == data.count(b"e")
    assert sorted(tokenized) == sorted(texts) and sum(readings) <= 2 * (at / "in.txt").stat().st_size
    readings.clear(), tokenized.clear()
    assert [place.document for place in trace.find(dataset, "late")] == list(range(0, 200, 20))
    assert tokenized == texts[::20] and sum(readings) <= 2 * (at / "in.txt").stat().st_size


def test_what_has_changed_since_is_noticed_from_wherever_one_asks(at):
    (at / "in.txt").write_text("\n".join(LINES))
    dataset = prepared("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line")
    asked = {
        "row": lambda: [trace.trace(dataset, row) for row in range(dataset.rows)],
        "phrase": lambda: list(trace.find(dataset, "FERRY")),
        "file": lambda: list(trace.find_file(dataset, "in.txt")),
        "byte": lambda: list(trace.find_file(dataset, "in.txt", at=20)),
        "document": lambda: show.show(dataset.folder, document=1),
    }
    (at / "in.txt").write_text("\n".join(LINES).replace("ferry", "FERRY"))
    for ask in asked.values():
        with pytest.raises(IntegrityError, match="changed since"):
            ask()
    for short in "\n".join(LINES)[:30], "\n".join(LINES[:2]):
        (at / "in.txt").write_text(short)
        with pytest.raises(IntegrityError, match="changed since"):
            list(trace.find(dataset, "FERRY"))


def test_a_file_that_has_changed_since_is_noticed_and_one_that_is_gone_is_said_to_be(at):
    (at / "in.txt").write_text("\n".join(LINES))
    dataset = prepared("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line")
    (at / "in.txt").write_text("\n".join(LINES).replace("ferry", "fairy"))
    with pytest.raises(IntegrityError, match="changed since"):
        for row in range(dataset.rows):
            trace.trace(dataset, row)
    (at / "in.txt").unlink()
    with pytest.raises(ConfigError, match="is gone"):
        trace.trace(dataset, 0)
    with pytest.raises(ConfigError, match="rows 0 to"):
        trace.trace(dataset, dataset.rows)


@pytest.mark.parametrize("phrase", ["late because", "é", "x", "was late because of the fög. 😀"])
def test_a_phrase_leads_to_the_rows_that_hold_it(at, phrase):
    (at / "in.txt").write_text("\n".join(LINES * 3))
    dataset = prepared("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "window.stride=2")
    places = list(trace.find(dataset, phrase))
    assert [place.document for place in places] == [n for n, line in enumerate(LINES * 3) for _ in range(line.count(phrase))]
    for place in places:
        assert (LINES * 3)[place.document].encode()[slice(*place.text)].decode() == phrase
        spans = [dataset.span(row) for row in range(dataset.rows)]
        holding = [row for row, (a, b) in enumerate(spans) if a <= place.positions[0] and place.positions[1] <= b]
        touching = [row for row, (a, b) in enumerate(spans) if a < place.positions[1] and place.positions[0] < b]
        assert list(place.rows) == (holding or touching)
        for row in place.rows if holding else ():
            pieces = [piece for piece in trace.trace(dataset, row) if piece.document == place.document]
            assert phrase in pieces[0].words


def test_a_file_or_a_byte_of_it_leads_to_its_documents_and_rows(at):
    (at / "a.txt").write_text("\n".join(LINES))
    (at / "b.txt").write_text("\r\n".join(LINES))
    dataset = prepared("corpus=text", "corpus.paths=[a.txt,b.txt]", "corpus.document=line")
    assert [place.document for place in trace.find_file(dataset, "b.txt")] == [5, 6, 7, 8, 9]
    (place,) = trace.find_file(dataset, str(at / "b.txt"), at=20)
    assert place.document == 6 and place.text == (6, 7)
    assert any(piece.file[0] <= 20 < piece.file[1] for piece in trace.trace(dataset, place.rows[0]) if piece.document == 6)
    with pytest.raises(ConfigError, match="lies in no document"):
        list(trace.find_file(dataset, "b.txt", at=len(LINES[0])))
    size = (at / "b.txt").stat().st_size
    for outside in (-1, size):
        with pytest.raises(ConfigError, match=f"{outside} lies in no document; the last ends at {size}, counted from 0"):
            list(trace.find_file(dataset, "b.txt", at=outside))
    with pytest.raises(ConfigError, match=r"no input file is called 'c.txt'. Nearest: 'a.txt'|'b.txt'"):
        list(trace.find_file(dataset, "c.txt"))


def test_of_a_byte_that_lies_in_another_split_it_is_said_where_it_may_be(at):
    (at / "in.txt").write_text("\n".join(f"{line} {n}" for n, line in enumerate(LINES * 6)))
    folder = prepared_folder("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line", "split.validation=0.3")
    train, held = (trace.Finished(folder / split) for split in ("train", "validation"))
    other = int(held.documents["start"][0])
    assert [place.text for place in trace.find_file(held, "in.txt", other)] == [(0, 1)]
    with pytest.raises(
        ConfigError, match=f"lies in no document, but in another split \\('{folder}/validation'\\), a line's end"
    ):
        list(trace.find_file(train, "in.txt", other))


@pytest.mark.parametrize("phrase", ["", "\udcff"])
def test_a_phrase_that_no_text_can_hold_is_refused(at, phrase):
    (at / "in.txt").write_text("\n".join(LINES))
    with pytest.raises(ConfigError, match="the phrase"):
        list(trace.find(prepared("corpus=text", "corpus.paths=[in.txt]"), phrase))


def test_a_step_of_training_leads_to_the_rows_that_the_loader_gives(at):
    (at / "in.txt").write_text("\n".join(LINES * 3))
    dataset = prepared("corpus=text", "corpus.paths=[in.txt]", "corpus.document=line")
    from pipeline import open_dataset

    opened = open_dataset(dataset.folder)
    for rank in (0, 1):
        options = {"batch_size": 3, "seed": 5, "epoch": 2, "rank": rank, "world_size": 2}
        for step, batch in enumerate(opened.loader(**options)):
            rows = trace.rows_of_step(dataset.folder, step, **options)
            assert np.array_equal(batch["input_ids"].numpy(), [dataset.row(row)["input_ids"] for row in rows])
        with pytest.raises(ConfigError, match=f"steps 0 to {step}"):
            trace.rows_of_step(dataset.folder, step + 1, **options)
