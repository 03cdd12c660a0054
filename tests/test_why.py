import os
import time

from pipeline.cache import Cache, Entry
from pipeline.why import shortened, why


def test_why_names_the_fields_that_changed_with_old_and_new(cache: Cache) -> None:
    assert why(cache.entry("window", {"stride": 64})) == []
    cache.entry("window", {"stride": 64, "length": {"context": 8}, "tail": "drop"}).finish([], [])
    cache.entry("window", {"stride": 1, "length": {"context": 9}, "tail": "pad"}).finish([], [])
    wanted = cache.entry("window", {"stride": 128, "length": {"context": 8}, "tail": "drop"})
    assert why(wanted) == ["stride 64 → 128"]
    assert why(cache.entry("window", {"stride": 64, "length": {"context": "é" * 99}})) == [
        'length.context 8 → "' + "é" * 36 + "…", 'tail "drop" → null',
    ]  # fmt: skip


def test_why_follows_a_changed_key_upstream_to_the_field_that_changed_it(cache: Cache) -> None:
    def line(size: int) -> list[Entry]:
        tokenizer = cache.entry("tokenizer", {"vocab_size": size})
        ids = cache.entry("ids", {"dtype": "auto", "upstream": {"tokenizer": tokenizer.key}})
        window = cache.entry("window", {"stride": 1, "upstream": {"ids": ids.key, "tokenizer": tokenizer.key}})
        return [tokenizer, ids, window, cache.entry("embed", {"upstream": {"window": window.key}})]

    for entry in line(512):
        entry.finish([], [])
    new = line(1024)
    known = {entry.key: entry for entry in new}
    assert why(new[3], known) == why(new[2], known) == ["tokenizer: vocab_size 512 → 1024"]
    old, old_key, new_key = line(512)[0], line(512)[0].key, new[0].key
    assert why(new[1]) == [f"upstream.tokenizer {old_key[:8]}… → {new_key[:8]}…"]
    (old.folder / "manifest.json").unlink()  # what it was made with is no longer known
    assert why(new[1], known) == [f"upstream.tokenizer {old_key[:8]}… → {new_key[:8]}…"]


def test_why_looks_at_the_sixteen_entries_used_last(cache: Cache) -> None:
    for number in range(17):
        entry = cache.entry("ids", {"number": number})
        entry.finish([], [], rows=0)
        os.utime(entry.folder / "manifest.json", (time.time() - number,) * 2)  # 0 is the newest
    assert why(cache.entry("ids", {"number": 99})) == ["number 0 → 99"]
    os.utime(cache.entry("ids", {"number": 16}).folder / "manifest.json")
    lines = {tuple(why(cache.entry("ids", {"number": 99, "also": 1})))}
    assert lines == {("also null → 1", "number 16 → 99")}


def test_a_long_value_is_shortened_at_forty_characters() -> None:
    assert [shortened("x" * n) for n in (38, 39)] == [f'"{"x" * 38}"', f'"{"x" * 36}…']
