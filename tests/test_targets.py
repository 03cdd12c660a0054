"""Who shifts the targets: the same loss by a plain loop and by models that shift, and every wrong combination refused."""

import pytest
import torch
from test_dataset import V, write_output
from torch.nn.functional import cross_entropy

from conftest import composed
from pipeline import open_dataset
from pipeline.errors import ConfigError
from pipeline.run import run
from pipeline.targets import IGNORED, TrainerRows, collate, targets, unshifted

L = 8


@pytest.fixture
def dataset(tmp_path):
    write_output(tmp_path / "out", [[5, 4], [3]])
    return open_dataset(tmp_path / "out")


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """Rows whose pad token is the EOS token, with EOS behind every document, and padding in the last row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("padded"))
        with open("notes.txt", "w") as file:
            file.writelines(f"the ferry was late {n}\n" for n in range(9))
        overrides = ["corpus=text", "corpus.paths=[notes.txt]", "corpus.document=line", "tokenizer=bytes", "name=notes"]
        overrides += ["tokenizer.eos_token='<|end|>'", f"window.context_length={L}", "window.tail=pad", "embedding=none"]
        run(composed(*overrides))
        yield open_dataset("outputs/notes")


def naive(row) -> tuple[list[int], list[int]]:
    """The IDs of a row's Trainer view, and the labels."""
    ids = [row["input_ids"].tolist()[0], *row["target_ids"].tolist()]
    mask = [1, *row["attention_mask"].tolist()]
    return ids, [i if real else IGNORED for i, real in zip(ids, mask, strict=True)]


def test_a_row_for_trainer_is_the_inputs_and_the_last_target_and_its_labels_are_the_same(padded):
    rows = TrainerRows(padded)
    assert len(rows) == len(padded)
    for i in range(-1, len(padded)):
        ids, labels = naive(padded[i])
        assert rows[i]["input_ids"].tolist() == ids and rows[i]["labels"].tolist() == labels
        assert rows[i]["attention_mask"].tolist() == [1, *padded[i]["attention_mask"].tolist()]


def test_eos_stays_a_target_where_it_is_the_pad_token_too(padded):
    last = padded[len(padded) - 1]
    assert not last["attention_mask"].all()
    end = int(last["target_ids"][-1])  # padding
    batch = collate([TrainerRows(padded)[i] for i in range(len(padded))])
    kept = int((batch["labels"][:, 1:] == end).sum())
    assert kept == 9 and int((batch["input_ids"][:, 1:] == end).sum()) > 9  # one for each document, beside the padding
    assert int((batch["labels"] == IGNORED).sum()) == int((last["attention_mask"] == 0).sum())


def test_targets_are_the_target_ids_less_padding(padded):
    batch = padded.batch(range(len(padded)))
    assert targets(batch).tolist() == [naive(padded[i])[1][1:] for i in range(len(padded))]
    assert targets({"target_ids": batch["target_ids"]}) is batch["target_ids"]


def test_rows_of_ours_given_to_trainer_are_refused_with_the_way_out(dataset):
    with pytest.raises(ConfigError, match=r"target_ids, which Trainer drops.*TrainerRows\(dataset\)"):
        collate([dataset[0], dataset[1]])
    with pytest.raises(ConfigError, match=r"no labels.*TrainerRows\(dataset\)"):
        collate([{"input_ids": dataset[0]["input_ids"]}])


def test_labels_that_are_shifted_already_are_refused_since_the_model_shifts_them_again(dataset):
    rows = [{"input_ids": dataset[i]["input_ids"], "labels": dataset[i]["target_ids"]} for i in range(3)]
    with pytest.raises(ConfigError, match="already shifted, and the model shifts them again"):
        collate(rows)
    rows[0]["labels"] = rows[0]["labels"].flip(0)
    with pytest.raises(ConfigError, match="labels are not the input_ids"):
        collate(rows)
    with pytest.raises(ConfigError, match=r"input_ids \[1, 8\] and labels \[1, 1\] differ in shape"):
        collate([{"input_ids": rows[0]["input_ids"], "labels": torch.zeros(1)}])


def test_a_plain_loss_refuses_labels_and_rows_without_targets(dataset):
    with pytest.raises(ConfigError, match="shifts by itself"):
        targets(unshifted(dataset.batch([0])))
    with pytest.raises(ConfigError, match="no target_ids"):
        targets({"input_ids": dataset[0]["input_ids"]})


def test_rows_without_targets_have_no_trainer_view(tmp_path):
    write_output(tmp_path / "out", [[5]], mode="prefix")
    data = open_dataset(tmp_path / "out")
    data.manifest["config"]["window"] = {"mode": "prefix"}
    with pytest.raises(ConfigError, match=r"window\.mode=prefix.*use window\.mode=sliding"):
        TrainerRows(data)


def model_of(kind: str, vocab_size: int):
    import transformers as t

    torch.manual_seed(0)
    if kind == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=vocab_size, n_positions=L + 1, n_embd=16, n_layer=2, n_head=2)).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = t.LlamaConfig(vocab_size=vocab_size, max_position_embeddings=L + 1, num_key_value_heads=2, **sizes)
    return t.LlamaForCausalLM(config).eval()


@pytest.mark.slow
@pytest.mark.row("C29")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("which", ["plain", "padded"])
def test_the_loss_of_a_model_that_shifts_is_the_plain_loss_of_our_rows(kind, which, dataset, padded):
    data = dataset if which == "plain" else padded
    if which == "plain":
        data = open_dataset(data.path, columns=["input_ids", "target_ids"])
        data.schema = data.schema.remove(data.schema.get_field_index("attention_mask"))
    model = model_of(kind, V)
    batch = data.batch(range(len(data)))
    with torch.no_grad():
        plain = cross_entropy(model(batch["input_ids"]).logits.flatten(0, 1).double(), targets(batch).flatten())
        theirs = (
            model(**collate([TrainerRows(data)[i] for i in range(len(data))])).loss
            if which == "padded"
            else model(**unshifted(batch)).loss
        )
        wrong = model(input_ids=batch["input_ids"], labels=batch["target_ids"]).loss
    assert abs(float(theirs) - float(plain)) < 2e-6 * float(plain)
    assert abs(float(wrong) - float(plain)) > 1e-4  # what labels=target_ids would learn
