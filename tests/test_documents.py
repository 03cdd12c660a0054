"""What the rows hold of documents, against rows whose every ID is its position in the stream."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_window import BERT, documents_of, naive

from conftest import composed
from pipeline import open_dataset
from pipeline.arrow import numbers
from pipeline.config import Window
from pipeline.documents import Documents, block_mask, cu_seqlens
from pipeline.errors import ConfigError, IntegrityError
from pipeline.permutation import keys, permute
from pipeline.run import run


def documents(path, lengths: list[int], cuts: list[int], w: Window, special: int = 0, **config) -> Documents:
    """The table of documents of these lengths, in record batches that end at `cuts`."""
    first = np.cumsum([0, *lengths])[:-1].astype(np.int64)
    table = pa.table({"first": numbers(first), "tokens": numbers(np.array(lengths, np.int64))})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        for low, high in itertools.pairwise([0, *sorted(cuts), len(lengths)]):
            writer.write_table(table.slice(low, high - low))
    rows = len(naive(w, documents_of(lengths), BERT))
    settings = {name: getattr(w, name) for name in w.__dataclass_fields__}
    return Documents(
        path, {"config": {"window": settings, **config}, "rows": rows, "ledger": {"window": {"special": special * rows}}}
    )


def told(w: Window, lengths: list[int]) -> list[tuple[list[int], list[int]]]:
    """position_ids and document_ids of each row, ID by ID."""
    owner = [number for number, length in enumerate(lengths) for _ in range(length)]
    out = []
    for nth, row in enumerate(naive(w, documents_of(lengths), BERT)):
        mask = row.get("attention_mask", [1] * w.context_length)
        if w.mode == "document":
            owners = [nth if real else -1 for real in mask]
        else:  # the mask speaks of targets; 255 is padding
            owners = [-1 if i == 255 else owner[i] for i in row["input_ids"]]
        positions = [
            len(list(itertools.takewhile(lambda o, own=own: o == own, owners[:j][::-1]))) for j, own in enumerate(owners)
        ]
        out.append((positions, owners))
    return out


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_positions_and_documents_are_those_of_every_single_id(tmp_path_factory, data):
    mode = data.draw(st.sampled_from(["sliding", "sliding", "document"]))
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=14).filter(lambda x: sum(x) > 1))
    cuts = data.draw(st.lists(st.integers(0, len(lengths)), max_size=4))
    w = Window(
        mode=mode,
        context_length=data.draw(st.integers(3, 9)),
        stride=data.draw(st.none() | st.integers(1, 11)) if mode == "sliding" else None,
        tail=data.draw(st.sampled_from(["drop", "pad"])),
        cross_documents=data.draw(st.booleans()),
        truncate=True,
        special_tokens=mode == "document",
    )
    shuffle = data.draw(st.sampled_from(["none", "windows"]))
    path = tmp_path_factory.mktemp("d") / "documents.arrow"
    table = documents(path, lengths, cuts, w, 2 * (mode == "document"), split={"shuffle": shuffle, "seed": 3})
    expected = told(w, lengths)
    assert table.rows == len(expected)
    if shuffle == "windows":
        expected = [expected[i] for i in permute(np.arange(len(expected)), len(expected), keys(3, 0)).tolist()]
    rows = data.draw(st.permutations(range(len(expected))))
    if rows:
        positions, owners = table.of(rows)
        assert positions.dtype == owners.dtype == np.int64
        for row, position, owner in zip(rows, positions.tolist(), owners.tolist(), strict=True):
            assert (position, owner) == expected[row], row


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4), st.booleans())
def test_borders_and_mask_say_the_same_as_the_ids(segments, causal):
    length = max(map(sum, segments))
    owners = [[n for n, k in enumerate(row) for _ in range(k)] for row in segments]
    owners = torch.tensor([row + [-1] * (length - len(row)) for row in owners])
    positions = torch.tensor([[sum(1 for x in row[:j] if x == row[j]) for j in range(length)] for row in owners.tolist()])
    borders, longest = cu_seqlens(positions)
    mask = block_mask(owners, causal)
    assert borders.dtype == torch.int32 and mask.dtype == torch.bool and mask.shape == (len(segments), 1, length, length)
    within = torch.zeros(owners.numel(), owners.numel(), dtype=torch.bool)
    for low, high in itertools.pairwise(borders.tolist()):
        within[low:high, low:high] = True
    assert longest == max(high - low for low, high in itertools.pairwise(borders.tolist()))
    for b in range(len(segments)):
        block = within[b * length : (b + 1) * length, b * length : (b + 1) * length]
        assert torch.equal(mask[b, 0], block.tril() if causal else block)
        within[b * length : (b + 1) * length, b * length : (b + 1) * length] = False
    assert not within.any()  # no segment crosses from one row to the next


def test_attention_with_the_mask_is_attention_in_each_document_alone():
    torch.manual_seed(0)
    owners = torch.tensor([[4, 4, 4, 5, 5, -1]])
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    whole = attend(q, k, v, attn_mask=block_mask(owners))
    for part in (slice(0, 3), slice(3, 5), slice(5, 6)):
        assert torch.allclose(whole[:, :, part], attend(q[:, :, part], k[:, :, part], v[:, :, part], is_causal=True), atol=1e-6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A dataset of many documents with end marks, made by the pipeline, overlapping windows and a padded tail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        patch.delenv("PIPELINE_ASSETS", raising=False)
        Path("notes.txt").write_text("".join(f"{'The ferry was late. ' * (n % 5 + 1)}{n}\n" for n in range(60)))
        overrides = [
            "corpus=text",
            "corpus.paths=[notes.txt]",
            "corpus.document=line",
            "tokenizer=bpe",
            "tokenizer.vocab_size=280",
        ]
        overrides += ["tokenizer.eos_token='<|end|>'", "window.context_length=16", "window.stride=10", "window.tail=pad"]
        run(composed(*overrides, "embedding.embedding_dim=4", "embedding.vectors=never", "name=notes"))
        yield open_dataset("outputs/notes")


def test_in_a_finished_dataset_a_document_begins_behind_each_end_mark(finished):
    end = json.loads((finished.path / "vocabulary.json").read_text())["<|end|>"]
    loader = finished.loader(4, seed=3, documents=True)
    batches = list(loader)
    assert sum(len(batch["input_ids"]) for batch in batches) == len(finished) > 50
    for batch in batches:
        ids, positions, owners = batch["input_ids"], batch["position_ids"], batch["document_ids"]
        assert (positions[:, 0] == 0).all()
        within = owners[:, 1:] >= 0  # the last document of the stream has an end mark too, before the padding
        assert torch.equal((positions[:, 1:] == 0)[within], (ids[:, :-1] == end)[within])
        borders, longest = cu_seqlens(positions)
        assert torch.equal(batch["cu_seqlens"], borders) and int(batch["max_seqlen"]) == longest
    assert (torch.cat([batch["document_ids"] for batch in batches]) == -1).any()


def test_workers_give_the_same_documents_and_vectors(finished):
    plain = list(finished.loader(8, seed=1, documents=True, embeddings=True))
    for one, other in zip(plain, finished.loader(8, seed=1, documents=True, embeddings=True, num_workers=2), strict=True):
        assert one.keys() == other.keys() >= {"document_ids", "cu_seqlens", "embeddings"}
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert torch.equal(one["embeddings"], finished.embeddings(one["input_ids"]))


def test_rows_that_cannot_tell_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"window\.mode=prefix lies in one document"):
        documents(tmp_path / "a.arrow", [3, 4], [], Window(mode="prefix", context_length=4))


def test_a_damaged_table_of_documents_is_found(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "copy")
    table = tmp_path / "copy" / "documents.arrow"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.unlink()
    table.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"documents\.arrow"):
        open_dataset(tmp_path / "copy").loader(2, documents=True)
