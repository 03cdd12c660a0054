# /// script
# dependencies = ["jax>=0.10", "numpy", "pyarrow", "safetensors", "filelock"]
# ///
"""JAX and numpy, without torch: `python -m scripts.train.with_jax outputs/sample`.

Batches are numpy arrays [B, L] in the narrow dtype in which they are stored; JAX takes them as they are. The model is a
table of next tokens (a bigram model), which is enough to see a loss fall.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pipeline import open_dataset


def loss(logits: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of the next token, in nats."""
    chosen = jax.nn.log_softmax(logits[inputs])
    return -jnp.take_along_axis(chosen, targets[..., None], -1).mean()


@jax.jit
def step(logits: jax.Array, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of gradient descent: the table after it, and the loss before it."""
    value, slope = jax.value_and_grad(loss)(logits, inputs, targets)
    return logits - 200.0 * slope, value


def main(path: Path, epochs: int = 3) -> list[float]:
    """The loss of each step."""
    size = len(json.loads((path / "vocabulary.json").read_text("utf-8")))
    logits, losses = jnp.zeros((size, size)), []
    loader = open_dataset(path).loader(4, seed=1, numpy=True)
    for _ in range(epochs):
        for batch in loader:
            inputs, targets = (jnp.asarray(batch[name].astype(np.int32)) for name in ("input_ids", "target_ids"))
            logits, value = step(logits, inputs, targets)
            losses.append(float(value))
    return losses


if __name__ == "__main__":
    print([round(value, 3) for value in main(Path(sys.argv[1]))])
