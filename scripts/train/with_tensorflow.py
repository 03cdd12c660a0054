# /// script
# dependencies = ["tensorflow-cpu>=2.20", "numpy", "pyarrow", "safetensors", "filelock"]
# ///
"""TensorFlow, without torch: `python -m scripts.train.with_tensorflow outputs/sample`.

Batches are int32 [B, L] in a tf.data.Dataset, and an embedding layer starts from the saved table [V, D]. With
`corpus=verdict tokenizer=bert window=document window.truncate=true embedding.embedding_dim=768` these are the tensors of
the seed chapter: `[1, 512]` and `[30522, 768]`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipeline import open_dataset


def batches(path: Path, batch_size: int) -> tf.data.Dataset:
    """One shuffled epoch: dicts of int32 tensors [B, L]."""
    loader = open_dataset(path).loader(batch_size, seed=1, numpy=True)

    def epoch() -> Iterator[dict[str, np.ndarray]]:
        for batch in loader:
            yield {name: values.astype(np.int32) for name, values in batch.items()}

    names, length = loader.dataset.columns, loader.dataset.arrays([0])["input_ids"].shape[1]
    signature = {name: tf.TensorSpec((None, length), tf.int32) for name in names}
    return tf.data.Dataset.from_generator(epoch, output_signature=signature).prefetch(1)


def embedding(path: Path) -> tf.keras.layers.Embedding:
    """An embedding layer [V, D] that starts from the saved table."""
    table = np.array(open_dataset(path).tables["token_embeddings"])
    layer = tf.keras.layers.Embedding(*table.shape)
    layer.build((None,))
    layer.set_weights([table])
    return layer


def main(path: Path) -> list[float]:
    """The loss of one epoch's steps, of a model that has but the embeddings and one layer."""
    layer = embedding(path)
    model = tf.keras.Sequential([layer, tf.keras.layers.Dense(layer.input_dim)])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=tf.keras.optimizers.Adam(1e-2), loss=loss)
    return [
        float(model.train_on_batch(batch["input_ids"], batch["target_ids"], return_dict=True)["loss"])
        for batch in batches(path, 4)
    ]


if __name__ == "__main__":
    for batch in batches(Path(sys.argv[1]), 1).take(1):
        print({name: (tuple(tensor.shape), tensor.dtype.name) for name, tensor in batch.items()})
    print("embeddings", tuple(embedding(Path(sys.argv[1])).embeddings.shape))
    if "target_ids" in batch:
        print([round(loss, 3) for loss in main(Path(sys.argv[1]))])
