import hashlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load as load_safetensors
from safetensors.torch import load_file, save_file

from pipeline import embedding, model
from pipeline.arrow import numbers
from pipeline.config import Config, Embedding, check
from pipeline.embedding import POSITIONS, TOKENS
from pipeline.errors import ConfigError, IntegrityError, ResourceError, TokenizerError

V, L, D = 60, 6, 4


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def windows(ids: np.ndarray, **metadata: str) -> pa.RecordBatch:
    column = pa.FixedSizeListArray.from_arrays(numbers(ids.ravel()), ids.shape[1])
    return pa.record_batch([column], schema=pa.schema([("input_ids", column.type)], metadata=metadata))


def some_ids(rows: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, V, (rows, L)).astype(np.uint8)


def values(batches: list[pa.RecordBatch]) -> np.ndarray:
    return np.array([row for batch in batches for row in batch["embeddings"].to_pylist()])


# -- random tables


def test_random_tables_have_the_bytes_they_had_when_version_1_was_made():
    assert embedding.VERSION == 1, "new bytes need a new VERSION, a new VERSION new values here"
    tables = embedding.tables(Embedding(embedding_dim=64, seed=7), 1000, 128)
    assert sha(tables[TOKENS]) == "a54e78ac3415e245"
    assert sha(tables[POSITIONS]) == "5cee7ef8e22444d6"
    assert sha(embedding.sinusoidal(128, 64)) == "254e4cbc9970be6c"
    file = io.BytesIO()
    embedding.save(tables, file)
    assert hashlib.sha256(file.getvalue()).hexdigest()[:16] == "7301fe38e1a0485a"


def test_a_table_depends_on_the_seed_and_its_width_alone():
    base = embedding.tables(Embedding(embedding_dim=D), V, L)
    longer = embedding.tables(Embedding(embedding_dim=D), V + 20_000, L + 9)
    assert np.array_equal(longer[TOKENS][:V], base[TOKENS]) and np.array_equal(longer[POSITIONS][:L], base[POSITIONS])
    assert np.array_equal(embedding.tables(Embedding(embedding_dim=D, positions="none"), V, L)[TOKENS], base[TOKENS])
    assert not np.array_equal(base[TOKENS][:L], base[POSITIONS])
    assert not np.array_equal(embedding.tables(Embedding(embedding_dim=D, seed=1), V, L)[TOKENS], base[TOKENS])


def test_the_table_of_bert_is_a_standard_normal_layer_of_30522_by_768():
    tables = embedding.tables(Embedding(embedding_dim=768), 30522, 512)
    layer = torch.nn.Embedding.from_pretrained(torch.from_numpy(tables[TOKENS]))
    assert layer.weight.shape == (30522, 768) and layer.weight.dtype == torch.float32
    assert abs(tables[TOKENS].mean()) < 1e-3 and abs(tables[TOKENS].std() - 1) < 1e-3
    assert layer(torch.tensor([[101, 1045, 102]])).shape == (1, 3, 768)


@pytest.mark.parametrize(("length", "dim"), [(1, 1), (3, 2), (50, 7), (700, 64)])
def test_sinusoidal_positions_are_those_of_the_paper(length, dim):
    table = embedding.sinusoidal(length, dim)
    assert table.shape == (length, dim) and table.dtype == np.float32
    for p in range(0, length, 7):
        for i in range(dim):
            angle = p / 10000 ** (2 * (i // 2) / dim)
            assert table[p, i] == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-6)


def test_tables_of_each_choice():
    assert embedding.tables(Embedding(kind="none"), V, L) == {}
    assert set(embedding.tables(Embedding(positions="none"), V, L)) == {TOKENS}
    sinusoidal = embedding.tables(Embedding(positions="sinusoidal", dtype="float16"), V, L)
    assert np.array_equal(sinusoidal[POSITIONS], embedding.sinusoidal(L, 64)) and sinusoidal[TOKENS].dtype == np.float32


# -- files


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_saved_tables_are_safetensors_and_come_back_the_same(tmp_path, positions):
    tables = embedding.tables(Embedding(embedding_dim=5, positions=positions), 7, 3)
    path = tmp_path / "embeddings.safetensors"
    with open(path, "wb") as file:
        embedding.save(dict(reversed(tables.items())), file)
    again = io.BytesIO()
    embedding.save(tables, again)
    assert path.read_bytes() == again.getvalue()
    for found in (
        embedding.load(path),
        load_safetensors(path.read_bytes()),
        {k: v.numpy() for k, v in load_file(path).items()},
    ):
        assert found.keys() == tables.keys() and all(np.array_equal(found[name], tables[name]) for name in tables)
    with pytest.raises(ValueError, match="read-only"):
        embedding.load(path)[TOKENS][0] = 0


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.zeros(3, 2)},
        {TOKENS: torch.zeros(3)},
        {TOKENS: torch.zeros(3, 2, dtype=torch.float16)},
        {TOKENS: torch.zeros(3, 2), POSITIONS: torch.zeros(3, 5)},
        {TOKENS: torch.zeros(3, 2), "more": torch.zeros(3, 2)},
    ],
)
def test_a_file_of_other_tensors_is_not_our_tables(tmp_path, tensors):
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(IntegrityError, match=r"expected token_embeddings F32 \[V, D\].*found"):
        embedding.load(tmp_path / "t.safetensors")


@pytest.mark.parametrize("size", [0, 7, 8, 60, -1])
def test_a_torn_file_is_no_safetensors(tmp_path, size):
    path = tmp_path / "t.safetensors"
    save_file({TOKENS: torch.zeros(3, 2)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        embedding.load(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 4000]},
        {"dtype": "F32", "shape": [200, 2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]},
        {"shape": [2, 2]},
        7,
    ],
)
def test_a_header_cannot_point_outside_its_file(tmp_path, entry):
    head = json.dumps({TOKENS: entry}).encode()
    (tmp_path / "t.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(16))
    with pytest.raises(TokenizerError, match="not a whole safetensors file"):
        model.safetensors(tmp_path / "t.safetensors")


# -- pretrained


def write_model(folder: Path, tensors: dict[str, torch.Tensor], model_type: str | None = None, shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def table(rows: int = V, dim: int = D, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows)).to(dtype)


def from_model(folder: Path | str, **settings: object) -> Embedding:
    return Embedding(**{"kind": "pretrained", "name": str(folder), "embedding_dim": None, "positions": "none", **settings})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "name",
    [
        "transformer.wte.weight",
        "wte.weight",
        "model.embed_tokens.weight",
        "model.language_model.embed_tokens.weight",
        "gpt_neox.embed_in.weight",
        "bert.embeddings.word_embeddings.weight",
        "embeddings.word_embeddings.weight",
        "shared.weight",
    ],
)
def test_the_input_table_of_a_model_is_found_and_converted_exactly(tmp_path, name, dtype):
    weights = table(dtype=dtype)
    write_model(tmp_path / "m", {"a.norm.weight": torch.ones(D), name: weights, "lm_head.weight": table(V + 1)})
    tables = embedding.tables(from_model(tmp_path / "m"), V - 3, L)
    assert tables.keys() == {TOKENS} and tables[TOKENS].dtype == np.float32
    assert torch.equal(torch.from_numpy(tables[TOKENS]), weights.to(torch.float32))


def test_a_sharded_model_is_read_through_its_index(tmp_path):
    tensors = {"a.weight": table(3), "model.embed_tokens.weight": table(), "z.weight": table(5)}
    write_model(tmp_path / "m", tensors, shards=2)
    os.unlink(tmp_path / "m/model-0.safetensors")  # holds neither what is wanted nor, so, what is read
    (tmp_path / "m/model-0.safetensors").write_bytes(b"")
    e = from_model(tmp_path / "m")
    assert np.array_equal(embedding.tables(e, V, L)[TOKENS], tensors["model.embed_tokens.weight"].numpy())
    assert embedding.embedding_dim(e) == D
    os.unlink(tmp_path / "m/model-1.safetensors")
    with pytest.raises(TokenizerError, match=r"index names 'model-1\.safetensors', which is not there"):
        embedding.tables(e, V, L)


def test_encoder_decoders_share_one_table(tmp_path):
    write_model(
        tmp_path / "m",
        {"shared.weight": table(), "encoder.embed_tokens.weight": table(), "decoder.embed_tokens.weight": table()},
    )
    assert embedding.origin(from_model(tmp_path / "m")) == {"name": "m", "revision": None, "tensors": {TOKENS: "shared.weight"}}


def test_two_tables_that_could_be_meant_are_asked_about(tmp_path):
    write_model(tmp_path / "m", {"text.embed_tokens.weight": table(), "sound.embed_tokens.weight": table()})
    with pytest.raises(TokenizerError, match=r"It has: sound\.embed_tokens\.weight, text\.embed_tokens\.weight\."):
        embedding.tables(from_model(tmp_path / "m"), V, L)


def test_an_unknown_name_is_asked_for_with_the_candidates(tmp_path):
    write_model(tmp_path / "m", {"body.norm.weight": torch.ones(D), "front.my_embedding": table()})
    with pytest.raises(TokenizerError, match=r"set embedding\.tensor=\. It has: front\.my_embedding, body\.norm\.weight\."):
        embedding.tables(from_model(tmp_path / "m"), V, L)
    with pytest.raises(TokenizerError, match=r"no tensor embedding\.tensor='x'\. It has: front"):
        embedding.tables(from_model(tmp_path / "m", tensor="x"), V, L)
    with pytest.raises(TokenizerError, match=r"'body.norm.weight' is F32 \[4\]; a table"):
        embedding.tables(from_model(tmp_path / "m", tensor="body.norm.weight"), V, L)
    assert len(embedding.tables(from_model(tmp_path / "m", tensor="front.my_embedding"), V, L)[TOKENS]) == V


@pytest.mark.row("C27")
def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(TokenizerError, match=r"needs \*\.safetensors, found only pytorch_model\.bin, a pickle") as caught:
        embedding.tables(from_model(tmp_path / "m"), V, L)
    assert caught.value.exit_code == 6


def test_learned_positions_are_the_models_own_where_it_has_them(tmp_path):
    positions = table(10)
    gpt2 = write_model(tmp_path / "g", {"transformer.wte.weight": table(), "transformer.wpe.weight": positions}, "gpt2")
    tables = embedding.tables(from_model(gpt2, positions="learned"), V, L)
    assert np.array_equal(tables[POSITIONS], positions[:L].numpy())
    with pytest.raises(TokenizerError, match=r"knows 10 positions, window\.context_length=11"):
        embedding.tables(from_model(gpt2, positions="learned"), V, 11)
    roberta = {"embeddings.word_embeddings.weight": table(), "embeddings.position_embeddings.weight": positions}
    with pytest.raises(TokenizerError, match=r"model_type roberta\) has no position table that we know of"):
        embedding.tables(from_model(write_model(tmp_path / "r", roberta, "roberta"), positions="learned"), V, L)
    assert embedding.tables(from_model(gpt2, positions="sinusoidal"), V, L)[POSITIONS].shape == (L, D)


@pytest.mark.row("C8")
def test_a_table_smaller_than_the_vocabulary_is_an_error_before_any_lookup(tmp_path):
    write_model(tmp_path / "m", {"wte.weight": table()})
    with pytest.raises(TokenizerError, match=f"has {V} rows, the vocabulary {V + 2} IDs, {V} to {V + 1} without a vector"):
        embedding.tables(from_model(tmp_path / "m"), V + 2, L)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.row("C28")
def test_nan_and_infinity_are_named_by_row(tmp_path, bad, dtype):
    weights = table(dtype=dtype)
    weights[41, 2] = bad
    write_model(tmp_path / "m", {"wte.weight": weights})
    with pytest.raises(TokenizerError, match=r"row 41 of 'wte\.weight' holds NaN or infinity"):
        embedding.tables(from_model(tmp_path / "m"), V, L)


def test_a_width_that_is_not_the_models_is_an_error(tmp_path):
    write_model(tmp_path / "m", {"wte.weight": table()})
    with pytest.raises(ConfigError, match=r"embedding_dim=64, but 'wte\.weight' of .* has 4 columns"):
        embedding.tables(from_model(tmp_path / "m", embedding_dim=64), V, L)


@pytest.mark.row("C27")
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"only pytorch_model\.bin, a pickle.*from_pretrained\(\.\.\.\)\.save_pretrained"):
        embedding.tables(from_model(tmp_path / "m"), V, L)


def test_a_model_is_found_in_data_then_in_the_mirror(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_ASSETS", str(tmp_path / "mirror"))
    write_model(tmp_path / "mirror/models/small", {"wte.weight": table(7)})
    with caplog.at_level("INFO"):
        assert len(embedding.tables(from_model("me/small", revision="v2"), 2, L)[TOKENS]) == 7
    assert "embedding.revision=v2 is not checked" in caplog.text
    write_model(tmp_path / "mirror/models/me/small", {"wte.weight": table(9)})
    assert len(embedding.tables(from_model("me/small"), 2, L)[TOKENS]) == 9
    write_model(tmp_path / "data/models/me/small", {"wte.weight": table(8)})
    assert len(embedding.tables(from_model("me/small"), 2, L)[TOKENS]) == 8


def test_offline_a_missing_model_names_every_place_within_seconds(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*arguments, timeout, **options):
        assert timeout < 5
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_ASSETS", "mirror")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("none")))
    with pytest.raises(
        TokenizerError,
        match=r"'me/gone'.*'data/models/me/gone', 'mirror/models/me/gone'.*, and the Hub: it cannot be.*embedding\.name=",
    ):
        embedding.tables(from_model("me/gone"), V, L)


def test_offline_what_the_hub_has_cached_is_used_and_its_commit_named(tmp_path, monkeypatch):
    import huggingface_hub

    folder = write_model(tmp_path / "snapshots/c0ffee", {"wte.weight": table()})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **rest: str(folder))
    assert embedding.tables(from_model("me/cached"), V, L)[TOKENS].shape == (V, D)
    assert embedding.origin(from_model("me/cached")) == {
        "name": "me/cached",
        "revision": "c0ffee",
        "tensors": {TOKENS: "wte.weight"},
    }


def test_on_the_hub_the_revision_is_resolved_and_only_the_needed_file_downloaded(tmp_path, monkeypatch):
    from types import SimpleNamespace

    import huggingface_hub

    folder = write_model(tmp_path / "m", {"a": table(3), "model.embed_tokens.weight": table(), "z": table(5)}, shards=2)
    files = [SimpleNamespace(rfilename=path.name) for path in folder.iterdir()]
    fetched = []
    info = SimpleNamespace(sha="c0ffee", siblings=files)
    monkeypatch.chdir(tmp_path / "m")
    monkeypatch.delenv("PIPELINE_ASSETS", raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, revision, timeout: info)
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda name, file, revision, **rest: (fetched.append((file, revision)), folder / file)[1],
    )
    e = from_model("some/model", revision="main")
    assert embedding.tables(e, V, L)[TOKENS].shape == (V, D)
    assert set(fetched) == {("model.safetensors.index.json", "c0ffee"), ("model-1.safetensors", "c0ffee")}
    assert embedding.origin(e)["revision"] == "c0ffee"


# -- identity and budget


def test_identity_holds_what_changes_the_bytes_and_nothing_else(tmp_path):
    base = embedding.identity(Embedding(), vectors=True)
    for same in ({"max_bytes": 1}, {"vectors": "always"}, {"device": "cuda"}, {"name": "x"}, {"revision": "y"}):
        assert embedding.identity(Embedding(**same), vectors=True) == base, same
    for other in ({"embedding_dim": 8}, {"seed": 1}, {"positions": "none"}, {"dtype": "float16"}):
        assert embedding.identity(Embedding(**other), vectors=True) != base, other
    assert embedding.identity(Embedding(), False) == embedding.identity(Embedding(dtype="float16"), False) != base
    assert embedding.identity(Embedding(kind="none"), False) == {"kind": "none"}
    one = write_model(tmp_path / "one", {"wte.weight": table()})
    moved = write_model(tmp_path / "two", {"x": table(9), "model.wte.weight": table()})
    changed = write_model(tmp_path / "three", {"wte.weight": table() + 1})
    ids = [embedding.identity(from_model(folder), False) for folder in (one, moved, changed)]
    assert ids[0] == ids[1] != ids[2] and str(tmp_path) not in json.dumps(ids)


def test_vectors_are_written_where_they_fit_and_the_cost_is_said():
    cost = embedding.vector_bytes(39 * 256, 64, "float32")
    assert cost == 39 * 256 * 64 * 4 == 2 * embedding.vector_bytes(39 * 256, 64, "float16")
    for settings, written, said in (
        ({"max_bytes": cost}, True, "2.56 MB, within embedding.max_bytes (2.56 MB)"),
        ({"max_bytes": cost - 1}, False, "2.56 MB is more than embedding.max_bytes (2.56 MB)"),
        ({"max_bytes": 0, "vectors": "always"}, True, "2.56 MB, embedding.vectors=always"),
        ({"vectors": "never"}, False, "would take 2.56 MB"),
    ):
        decided, sentence = embedding.decide(Embedding(**settings), 39 * 256)
        assert decided is written and said in sentence
    assert embedding.decide(Embedding(kind="none"), 39 * 256)[0] is False


def test_random_vectors_need_a_width():
    config = Config(embedding=Embedding(embedding_dim=None))
    config.corpus.paths = ["x"]
    with pytest.raises(ConfigError, match=r"embedding\.embedding_dim is required"):
        check(config)


# -- looking up


@pytest.mark.parametrize("positions", ["learned", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dim", [D, 40_000])  # several rows to a piece; several pieces to a row
def test_vectors_are_those_of_a_naive_sum(positions, dtype, dim):
    e = Embedding(embedding_dim=dim, positions=positions, dtype=dtype)
    ids, tables = some_ids(), embedding.tables(e, V, L)
    naive = tables[TOKENS][ids] + (tables[POSITIONS] if positions == "learned" else np.float32(0))
    batch = windows(ids, shift="kept")
    made = list(embedding.embed([batch.slice(0, 3), batch.slice(3)], tables, e))
    flat = [batch["embeddings"].flatten().flatten() for batch in made]
    got = np.concatenate([np.frombuffer(f.buffers()[1], dtype, len(f), f.offset * np.dtype(dtype).itemsize) for f in flat])
    got = got.reshape(len(ids), L, dim)
    assert np.array_equal(got, naive.astype(dtype))
    assert np.array_equal(got, embedding.lookup(ids.astype(np.int64), tables, dtype))
    kind = pa.list_(pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dim), L)
    assert made[0].schema == embedding.schema(batch.schema, dim, dtype) and made[0].schema.field("embeddings").type == kind
    assert made[0].schema.metadata == {b"shift": b"kept"}
    assert pa.Table.from_batches(made).drop_columns("embeddings").equals(pa.Table.from_batches([batch]))
    for b in made:
        b.validate(full=True)


def test_rows_that_grow_get_vectors_of_their_own_length():
    e, ids = Embedding(embedding_dim=D), [[5], [5, 9], [], [5, 9, 1]]
    tables = embedding.tables(e, V, 3)
    whole = pa.record_batch({"input_ids": pa.array([[1, 2], *ids], pa.list_(pa.uint16()))})
    (made,) = embedding.embed([whole.slice(1)], tables, e)
    made.validate(full=True)
    assert made.schema == embedding.schema(whole.schema, D, "float32")
    for row, expected in zip(made["embeddings"].to_pylist(), ids, strict=True):
        assert row == (tables[TOKENS][expected] + tables[POSITIONS][: len(expected)]).tolist()


def test_batches_are_cut_by_size_alone_and_memory_is_used_again_only_when_free(monkeypatch):
    monkeypatch.setattr(embedding, "BLOCK", 3 * L * D * 4)
    e, ids = Embedding(embedding_dim=D), some_ids(20)
    tables = embedding.tables(e, V, L)
    held = list(embedding.embed([windows(ids)], tables, e))
    assert [len(batch) for batch in held] == [3] * 6 + [2]
    assert np.array_equal(values(held), tables[TOKENS][ids] + tables[POSITIONS])
    places = {batch["embeddings"].values.values.buffers()[1].address for batch in embedding.embed([windows(ids)], tables, e)}
    assert len(places) == 2
    columns = [batch["embeddings"].values.values for batch in embedding.embed([windows(ids)], tables, e)]  # outlive their batch
    assert np.array_equal(np.concatenate([c.to_pylist() for c in columns]).reshape(20, L, D), values(held))


@pytest.mark.row("C8")
def test_an_id_without_a_vector_is_an_error_naming_its_row():
    e, ids = Embedding(embedding_dim=D), some_ids(20)
    tables = embedding.tables(e, V, L)
    ids[17, 3] = V
    made = embedding.embed([windows(ids[:10]), windows(ids[10:])], tables, e)
    assert len(next(made)) == 10
    with pytest.raises(TokenizerError, match=f"row 17: ID {V} has no vector, the embedding table has {V} rows"):
        next(made)
    with pytest.raises(TokenizerError, match="row 17"):
        embedding.lookup(ids.astype(np.int64), tables, "float32")
    with pytest.raises(TokenizerError, match="row 0: ID -1"):
        embedding.lookup(np.array([-1]), tables, "float32")
    with pytest.raises(TokenizerError, match=f"row 0: {L + 1} IDs, but the position table has {L} rows"):
        embedding.lookup(np.zeros((1, L + 1), np.int64), tables, "float32")


def test_float16_that_cannot_hold_the_table_is_refused():
    tables = {TOKENS: np.full((V, D), -70_000, np.float32)}
    with pytest.raises(ConfigError, match=r"float16 ends at 65504, the tables reach 70000"):
        next(embedding.embed([windows(some_ids())], tables, Embedding(dtype="float16")))


@pytest.mark.row("C28")
def test_where_the_device_is_too_small_the_batch_halves():
    e, ids = Embedding(embedding_dim=D), some_ids().ravel()
    tables = embedding.tables(e, V, L)
    places, sizes = np.arange(len(ids)) % L, []

    def small(ids, places, out):
        if len(ids) > 8:
            raise torch.cuda.OutOfMemoryError("too many")
        sizes.append(len(ids))
        embedding._look_up(tables[TOKENS], tables[POSITIONS], ids, places, out)

    out = np.empty((len(ids), D), np.float32)
    embedding._in_halves(small, torch.cuda.OutOfMemoryError, ids, places, out)
    assert sum(sizes) == len(ids) and max(sizes) <= 8
    assert np.array_equal(out, tables[TOKENS][ids] + tables[POSITIONS][places])
    with pytest.raises(ResourceError, match="out of memory for one vector"):
        embedding._in_halves(lambda *a: small(np.zeros(9), places, out), torch.cuda.OutOfMemoryError, ids, places, out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused():
    e = Embedding(device="cuda")
    with pytest.raises(ResourceError, match=r"torch sees no CUDA device\. Set embedding\.device=cpu"):
        next(embedding.embed([windows(some_ids())], embedding.tables(e, V, L), e))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_gives_the_bytes_of_the_cpu(dtype):
    cpu, gpu = Embedding(dtype=dtype), Embedding(dtype=dtype, device="cuda")
    tables = embedding.tables(cpu, V, L)
    ours, theirs = (list(embedding.embed([windows(some_ids(500))], tables, e)) for e in (cpu, gpu))
    assert pa.Table.from_batches(ours).equals(pa.Table.from_batches(theirs))


def test_random_vectors_import_neither_torch_nor_the_hub_nor_pandas():
    code = (
        "import sys, numpy, pyarrow as pa\n"
        "from pipeline.arrow import numbers\n"
        "from pipeline import embedding\nfrom pipeline.config import Embedding\n"
        "ids = pa.FixedSizeListArray.from_arrays(numbers(numpy.array([1, 2], 'u1')), 2)\n"
        "list(embedding.embed([pa.record_batch({'input_ids': ids})], embedding.tables(Embedding(), 3, 2), Embedding()))\n"
        "print([m for m in ('torch', 'huggingface_hub', 'pandas', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
