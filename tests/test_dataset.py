import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import dataset, embedding, open_dataset
from pipeline.arrow import numbers
from pipeline.config import Embedding
from pipeline.errors import ConfigError, IntegrityError
from pipeline.files import hash_file, seal, unseal
from pipeline.loader import keys, permute

L, V = 8, 300


def write_output(folder: Path, files: list[list[int]], mode: str = "sliding", e: Embedding | None = None) -> np.ndarray:
    """An output folder as the pipeline lays it out; `files` gives the rows of each record batch. Returns the IDs [rows, L]."""
    e = e or Embedding(embedding_dim=4)
    folder.mkdir()
    rows = sum(map(sum, files))
    ids = np.random.default_rng(rows).integers(0, V, (rows, L + 1)).astype(np.uint16)
    tables = embedding.tables(e, V, L)
    notes: dict[str, dict[str, object]] = {}

    def columns(first: int, count: int) -> pa.RecordBatch:
        if mode == "prefix":
            lengths = [1 + (first + i) % L for i in range(count)]
            rows = pa.array([ids[first + i, :n].tolist() for i, n in enumerate(lengths)], pa.list_(pa.uint16()))
            return pa.record_batch({"input_ids": rows})
        part = {name: ids[first : first + count, a : a + L] for name, a in (("input_ids", 0), ("target_ids", 1))}
        part["attention_mask"] = (part["target_ids"] % 2).astype(np.uint8)
        return pa.record_batch({name: pa.FixedSizeListArray.from_arrays(numbers(x.ravel()), L) for name, x in part.items()})

    at = 0
    for number, batches in enumerate(files):
        name = f"data-{number:05d}.arrow"
        made = [columns(at + sum(batches[:i]), count) for i, count in enumerate(batches)]
        if e.vectors == "always":
            made = list(embedding.embed(made, tables, e))
        with pa.ipc.new_stream(str(folder / name), made[0].schema) as writer:
            for batch in made:
                writer.write_batch(batch)
        notes[name] = {"rows": sum(batches)}
        at += sum(batches)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in notes]}))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    with open(folder / "embeddings.safetensors", "wb") as file:
        embedding.save(tables, file)
    for name in ("state.json", "tokenizer/tokenizer.json", "embeddings.safetensors", *list(notes)):
        size, sha = hash_file(folder / name)
        notes[name] = {"bytes": size, "sha256": sha, **notes.get(name, {})}
    content = {
        "schema": 1,
        "files": notes,
        "rows": sum(map(sum, files)),
        "config": {
            "corpus": {},
            "tokenizer": {"kind": "words"},
            "vocabulary": {},
            "window": {"mode": mode, "context_length": L},
            "embedding": {"kind": "random", "dtype": e.dtype},
        },
        "shift": "already shifted",
        "name": "out",
        "sources": [],
        "versions": {},
        "tokenizer": {},
        "embedding": None,
        "ledger": {"load": {}, "encode": {"tokens": 0, "bos": 0, "eos": 0}, "window": {"slots": 0}},
        "keys": {"window": "0" * 32},
    }
    (folder / "manifest.json").write_bytes(seal(content))
    return ids.astype(np.int64)


@pytest.fixture
def folder(tmp_path):
    write_output(tmp_path / "out", [[5, 4], [1], [7, 6]])
    return tmp_path / "out"


def test_every_row_is_what_was_written_whichever_way_it_is_asked_for(tmp_path):
    ids = write_output(tmp_path / "out", [[5, 4], [1], [7, 6]])
    data = open_dataset(tmp_path / "out")
    assert len(data) == 23 and data.columns == ["input_ids", "target_ids", "attention_mask"]
    for i in range(-23, 23):
        row = data[i]
        assert {t.dtype for t in row.values()} == {torch.int64} and {t.shape for t in row.values()} == {(L,)}
        assert row["input_ids"].tolist() == ids[i, :-1].tolist() and row["target_ids"].tolist() == ids[i, 1:].tolist()
        assert row["attention_mask"].tolist() == (ids[i, 1:] % 2).tolist()
    wanted = [22, 0, 9, 9, -1, 8]
    batch = data.batch(wanted)
    assert batch["target_ids"].dtype == torch.int64 and batch["target_ids"].tolist() == ids[wanted, 1:].tolist()
    assert [row["input_ids"].tolist() for row in data.__getitems__(wanted)] == ids[wanted, :-1].tolist()
    assert [row["input_ids"].tolist() for row in data] == ids[:, :-1].tolist()


def test_rows_beyond_the_ends_are_index_errors(folder):
    data = open_dataset(folder)
    for index in (23, -24):
        with pytest.raises(IndexError, match="23 rows"):
            data[index]


def test_the_default_dataloader_of_torch_reads_it(folder):
    batches = list(DataLoader(open_dataset(folder), batch_size=10))
    assert [len(b["input_ids"]) for b in batches] == [10, 10, 3]
    assert torch.equal(batches[2]["target_ids"][2], open_dataset(folder)[22]["target_ids"])


@pytest.mark.slow
@pytest.mark.row("C29")
def test_a_causal_model_that_shifts_labels_itself_learns_the_very_targets_of_a_row(folder):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=L, n_embd=8, n_layer=1, n_head=2)).eval()
    batch = next(iter(DataLoader(open_dataset(folder), batch_size=4)))
    inputs, targets = batch["input_ids"], batch["target_ids"]
    assert "labels" not in batch and torch.equal(inputs[:, 1:], targets[:, :-1])
    shifted_by_it = model(input_ids=inputs, labels=inputs)  # as transformers wants it: labels are the inputs, unshifted
    own = torch.nn.functional.cross_entropy(shifted_by_it.logits[:, :-1].reshape(-1, V), targets[:, :-1].reshape(-1))
    assert torch.allclose(shifted_by_it.loss, own)
    assert not torch.allclose(model(input_ids=inputs, labels=targets).loss, own)  # what a column called labels would do


def test_tensors_may_be_written_to_without_touching_the_file(folder):
    data = open_dataset(folder)
    data[0]["input_ids"].fill_(7)
    data.batch([0])["input_ids"].fill_(7)
    assert open_dataset(folder, verify="full")[0]["input_ids"].tolist() == data[0]["input_ids"].tolist() != [7] * L


def test_prefix_rows_have_their_own_length_and_refuse_to_be_stacked(tmp_path):
    ids = write_output(tmp_path / "out", [[5, 4], [3]], mode="prefix")
    data = open_dataset(tmp_path / "out")
    assert [data[i]["input_ids"].tolist() for i in range(12)] == [ids[i, : 1 + i % L].tolist() for i in range(12)]
    assert [len(row["input_ids"]) for row in data.__getitems__([0, 1, 11])] == [1, 2, 4]
    with pytest.raises(ConfigError, match="differ in length"):
        data.batch([0, 1])
    with pytest.raises(ConfigError, match="collate_fn"):
        data.loader(2)


# -- verification


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-70] ^= 4  # in the last column of an Arrow file
    elif how == "cut":
        content = content[:-1]
    elif how == "longer":
        content += b"\0"
    path.unlink()
    if how != "missing":
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["data-00000.arrow", "data-00002.arrow", "embeddings.safetensors", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "longer", "missing"])
def test_a_file_of_another_size_is_found_at_opening(folder, name, how):
    damage(folder / name, how)
    for verify in ("touch", "full", "sizes"):
        with pytest.raises(IntegrityError, match=rf"{name}.*expected \d+ bytes, found"):
            open_dataset(folder, verify=verify)


def test_a_flipped_bit_is_found_when_its_file_is_first_touched(folder):
    sha = json.loads((folder / "manifest.json").read_bytes())["files"]["data-00002.arrow"]["sha256"]
    damage(folder / "data-00002.arrow", "flip")
    data = open_dataset(folder)
    assert data[9]["input_ids"].shape == (L,)
    for ask in (lambda: data[10], lambda: data.batch([0, 22]), lambda: data[10]):
        with pytest.raises(IntegrityError, match=rf"data-00002.arrow.*sha256 {sha}, found \d+ bytes, sha256 [0-9a-f]{{64}}"):
            ask()
    with pytest.raises(IntegrityError, match=r"data-00002\.arrow"):
        open_dataset(folder, verify="full")
    assert len(open_dataset(folder, verify="sizes")[10]) == 3


def test_flipped_bits_of_tables_and_manifest_are_found(folder):
    damage(folder / "embeddings.safetensors", "flip")
    with pytest.raises(IntegrityError, match=r"embeddings\.safetensors.*sha256"):
        open_dataset(folder).embedding_layer()
    damage(folder / "manifest.json", "flip")
    with pytest.raises(IntegrityError, match=r"manifest\.json.*not as it was written"):
        open_dataset(folder)


def test_a_folder_without_manifest_is_no_dataset(tmp_path):
    with pytest.raises(ConfigError, match="no finished dataset"):
        open_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../b", ""])
def test_a_manifest_cannot_name_a_file_outside_its_folder(folder, name):
    content = unseal(folder / "manifest.json")
    content["files"][name] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_bytes(seal(content))
    with pytest.raises(IntegrityError, match="not a file inside"):
        open_dataset(folder)


def test_unknown_columns_and_verify_are_refused_by_name(folder):
    with pytest.raises(ConfigError, match=r"no column 'labels'; it has input_ids, target_ids"):
        open_dataset(folder, columns=["labels"])
    with pytest.raises(ConfigError, match="verify='fully'"):
        open_dataset(folder, verify="fully")


# -- other processes


def test_a_pickled_copy_reads_the_same_without_hashing_again(folder, monkeypatch):
    data = open_dataset(folder, verify="full", columns=["target_ids"])
    packed = pickle.dumps(data)
    monkeypatch.setattr(dataset, "require_whole", lambda path, _: pytest.fail(f"hashed {path} again"))
    copy = pickle.loads(packed)
    assert len(packed) < 5000 and copy.columns == ["target_ids"]
    assert torch.equal(copy[11]["target_ids"], data[11]["target_ids"])


def test_a_pickled_copy_finds_what_changed_since(folder):
    packed = pickle.dumps(open_dataset(folder, verify="full"))
    damage(folder / "data-00001.arrow", "flip")
    with pytest.raises(IntegrityError, match=r"data-00001\.arrow"):
        pickle.loads(packed)[9]
    shutil.rmtree(folder)
    write_output(folder, [[3]])
    with pytest.raises(IntegrityError, match="was replaced"):
        pickle.loads(packed)


def read_row(data, index):
    return data[index]["input_ids"].tolist()


def test_a_spawned_process_reads_the_same(folder):
    data = open_dataset(folder)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_row, (data, 12)) == read_row(data, 12)


# -- vectors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_on_the_fly_equal_the_written_ones(tmp_path, dtype):
    write_output(tmp_path / "out", [[5, 4], [3]], e=Embedding(embedding_dim=4, vectors="always", dtype=dtype))
    data = open_dataset(tmp_path / "out", columns=["input_ids", "embeddings"])
    batch = data.batch(range(12))
    assert batch["embeddings"].dtype == getattr(torch, dtype) and batch["embeddings"].shape == (12, L, 4)
    assert torch.equal(data.embeddings(batch["input_ids"]), batch["embeddings"])
    assert torch.equal(data.embeddings(batch["input_ids"][3]), data[3]["embeddings"])
    assert "embeddings" not in open_dataset(tmp_path / "out").columns


def test_the_embedding_layer_starts_from_the_saved_table(folder):
    layer = open_dataset(folder).embedding_layer()
    assert isinstance(layer, torch.nn.Embedding) and layer.weight.requires_grad
    assert torch.equal(
        layer.weight.detach(), torch.from_numpy(embedding.tables(Embedding(embedding_dim=4), V, L)["token_embeddings"])
    )
    assert not open_dataset(folder).embedding_layer(freeze=True).weight.requires_grad


# -- the loader


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 4095, 4097, 65537])
def test_the_shuffle_is_a_permutation(n):
    assert np.array_equal(np.sort(permute(np.arange(n), n, keys(n, 3))), np.arange(n))


def test_the_shuffle_of_a_huge_dataset_takes_the_memory_of_what_is_asked():
    n = 10**15 + 37
    images = permute(np.arange(n - 1000, n), n, keys(0, 0))
    assert len(np.unique(images)) == 1000 and images.min() >= 0 and images.max() < n
    assert abs(np.corrcoef(np.arange(1000), images)[0, 1]) < 0.15


def test_the_shuffle_looks_random():
    n, epochs = 64, 2000
    orders = np.stack([permute(np.arange(n), n, keys(5, epoch)) for epoch in range(epochs)])
    counts = np.stack([np.bincount(orders[:, place], minlength=n) for place in range(n)])  # of each sample, at each place
    chi = ((counts - epochs / n) ** 2 / (epochs / n)).sum() / (n - 1) ** 2
    assert 0.9 < chi < 1.1
    follows = np.mean(np.abs(np.diff(orders, axis=1)) == 1)  # neighbours that stay neighbours: 2 in n by chance
    assert 0.8 < follows * n / 2 < 1.2


def in_step(ranks: list[list[list[list[int]]]], steps: int) -> list[list[int]]:
    """The rows of each rank's first batches as one sequence, step after step, rank after rank."""
    return [row for step in range(steps) for batches in ranks for row in (batches[step] if step < len(batches) else [])]


def ran(data, state, batch_size, world_size, num_workers):
    """Each rank's batches of rows from a state to the end of the epoch, and rank 0's state after each step."""
    ranks, states = [], []
    for rank in range(world_size):
        loader = data.loader(batch_size, 9, rank=rank, world_size=world_size, num_workers=num_workers, drop_last=False)
        loader.load_state_dict(state or loader.state_dict())
        ranks.append([])
        for batch in loader:
            ranks[-1].append(batch["input_ids"].tolist())
            if rank == 0:
                states.append(loader.state_dict())
        assert (loader.epoch, loader.samples) == (1, 0)
    return ranks, states


def resumed(data, before, afters):
    """Interrupt a job (batch size, world size, workers) after each of its steps, go on as each other, compare with the whole."""
    whole = [data[int(i)]["input_ids"].tolist() for i in permute(np.arange(23), 23, keys(9, 0))]
    ranks, states = ran(data, None, *before)
    most = max(map(len, ranks))
    assert in_step(ranks, most) == whole
    for steps, state in enumerate(states, 1):
        begun = in_step(ranks, steps)
        if state["epoch"]:  # the last step was given
            assert (state["epoch"], state["samples"]) == (1, 0) and begun == whole
            continue
        assert state["samples"] == len(begun) < 23
        for after in afters:
            rest, _ = ran(data, state, *after)
            assert begun + in_step(rest, max(map(len, rest))) == whole, (before, after, steps)


WORLDS = (1, 2, 3, 4, 8)


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_job_resumed_with_other_ranks_and_batches_sees_the_same_sequence(folder, batch_size, world_size):
    data = open_dataset(folder, columns=["input_ids"])
    resumed(data, (batch_size, world_size, 0), [(2, world, 0) for world in WORLDS] + [(5, 1, 0), (30, 1, 0)])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", WORLDS)
def test_a_job_resumed_with_other_numbers_of_workers_sees_the_same_sequence(folder, world_size):
    data = open_dataset(folder, columns=["input_ids"])
    afters = [(2, WORLDS[(WORLDS.index(world_size) + 1) % 5], 2), (3, 1, 0)]
    resumed(data, (2, world_size, 2), afters)
    resumed(data, (3, world_size, 0), [(1, world_size, 2)])


def test_an_epoch_ends_with_its_last_batch_for_loops_that_ask_for_no_more(folder):
    loader = open_dataset(folder).loader(4, seed=1, drop_last=True)
    for epoch in range(3):
        iterator = iter(loader)
        given = [next(iterator)["input_ids"] for _ in range(len(loader))]
        assert len(given) == 5 and (loader.epoch, loader.samples) == (epoch + 1, 0)
    assert [len(b["input_ids"]) for b in loader] == [4] * 5 and loader.epoch == 4


def test_workers_change_nothing_and_what_they_read_ahead_is_not_counted(folder):
    data = open_dataset(folder)
    plain = [batch["input_ids"].tolist() for batch in data.loader(4, seed=2)]
    loader = data.loader(4, seed=2, num_workers=2)
    before = torch.get_rng_state()
    iterator = iter(loader)
    begun = [next(iterator)["input_ids"].tolist() for _ in range(3)]
    assert loader.state_dict()["samples"] == 12
    resumed = data.loader(4)
    resumed.load_state_dict(loader.state_dict())
    assert begun + [batch["input_ids"].tolist() for batch in resumed] == plain
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_follow_each_other_in_different_orders(folder):
    loader = open_dataset(folder).loader(5, seed=3)
    epochs = [[tuple(row) for batch in loader for row in batch["input_ids"].tolist()] for _ in range(3)]
    assert loader.epoch == 3 and len(set(map(tuple, epochs))) == 3 and len({frozenset(epoch) for epoch in epochs}) == 1
    loader.set_epoch(1)
    assert [tuple(row) for batch in loader for row in batch["input_ids"].tolist()] == epochs[1]


def test_a_state_taken_behind_the_last_batch_resumes_in_the_next_epoch(folder):
    data = open_dataset(folder)
    loader = data.loader(5)
    for _ in loader:
        state = loader.state_dict()
    assert (state["epoch"], state["samples"]) == (1, 0)
    resumed = data.loader(5)
    resumed.load_state_dict(state)
    assert resumed.epoch == 1 and len(list(resumed)) == 5 and resumed.epoch == 2


def test_without_shuffle_rows_come_in_order_and_ranks_take_equally_many_steps(folder):
    data = open_dataset(folder)
    assert [row for b in data.loader(4, shuffle=False) for row in b["input_ids"].tolist()] == [
        r["input_ids"].tolist() for r in data
    ]
    ranks = [list(data.loader(4, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [1, 1, 1] == [len(data.loader(4, rank=r, world_size=3)) for r in range(3)]
    uneven = [data.loader(4, rank=rank, world_size=5, drop_last=False) for rank in range(5)]
    assert [len(loader) for loader in uneven] == [len(list(loader)) for loader in uneven] == [1, 2, 1, 2, 2]


def test_a_state_of_another_dataset_or_order_is_refused(folder, tmp_path):
    data = open_dataset(folder)
    write_output(tmp_path / "other", [[23]])
    state = data.loader(2).state_dict()
    assert all(type(value) is int for value in state.values())
    with pytest.raises(ConfigError, match="another dataset"):
        open_dataset(tmp_path / "other").loader(2).load_state_dict(state)
    with pytest.raises(ConfigError, match="another shuffle: 1, here 0"):
        data.loader(2, shuffle=False).load_state_dict(state)


def test_a_batch_of_far_more_rows_than_there_are_holds_them_all_and_takes_no_more_memory(folder):
    loader = open_dataset(folder).loader(2**31 - 1)
    assert sorted(loader.rows_at(0)) == list(range(23)) and len(next(iter(loader))["input_ids"]) == 23


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 10**20}, "batch_size=100000000000000000000 is more than 2147483647"),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, "rank=2 must be less than world_size=2"),
        ({"batch_size": 2, "seed": -1}, "seed=-1"),
        ({"batch_size": 12, "world_size": 2}, "23 rows do not fill one step"),
    ],
)
def test_loader_options_that_cannot_be_are_refused(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        open_dataset(folder).loader(**options)
