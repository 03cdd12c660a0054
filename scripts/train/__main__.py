"""A tiny GPT that learns a finished dataset by heart, in plain torch: `python -m scripts.train outputs/sample`.

The loss starts near ln(vocabulary), where all tokens are alike, and falls towards 0, where the text is known. Losses are
the same on every run of a machine, interrupted and resumed or not: a checkpoint holds the model, the optimizer and four
integers of the loader. With `--plot` (matplotlib) the curve is drawn.
"""

import argparse
import json
import math
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pipeline import open_dataset
from pipeline.targets import targets


class Block(nn.Module):
    """Attention over what came before, then a small network for each position; both are added to what they are given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, width] to [B, L, width]."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, -1))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        return x + self.network(self.between(x))


class GPT(nn.Module):
    """Embeddings of tokens and positions, blocks, and the token embeddings once more to tell the next token."""

    def __init__(self, vocab_size: int, length: int, width: int = 128, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.last = nn.LayerNorm(width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """IDs int64 [B, L] to logits [B, L, V]."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.last(self.blocks(x)) @ self.tokens.weight.T


def train(path: Path, steps: int, batch_size: int, seed: int, checkpoint: Path | None, every: int, device: str) -> list[float]:
    """The loss of each step from the first on, those before the checkpoint included."""
    dataset = open_dataset(path)
    loader = dataset.loader(batch_size, seed, pin_memory=device != "cpu")
    vocab_size = len(json.loads((path / "vocabulary.json").read_text("utf-8")))
    torch.manual_seed(seed)
    model = GPT(vocab_size, len(dataset[0]["input_ids"])).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    losses: list[float] = []
    if checkpoint and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        losses = state["losses"]
        print(f"goes on behind step {len(losses)}")
    else:
        print(f"{vocab_size} tokens: a loss of about {math.log(vocab_size):.2f} before anything is learned")
    while len(losses) < steps:
        for batch in loader:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            logits = model(batch["input_ids"])
            loss = functional.cross_entropy(logits.flatten(0, 1), targets(batch).flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % every == 0 or len(losses) in (1, steps):
                print(f"step {len(losses):5}   loss {losses[-1]:.3f}", flush=True)
                if checkpoint:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
                    torch.save(state | {"loader": loader.state_dict()}, new := checkpoint.with_suffix(".new"))
                    os.replace(new, checkpoint)  # never half a checkpoint
            if len(losses) == steps:
                break
    return losses


def plot(losses: list[float], path: Path) -> None:
    """The loss by step, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(range(1, len(losses) + 1), losses)
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> list[float]:
    """Read the command line, train, draw. Returns the losses."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train", description="Train a tiny GPT.")
    parser.add_argument("dataset", type=Path, help="a finished dataset, such as outputs/sample")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="written on the way; where it is there, training goes on from it")
    parser.add_argument("--every", type=int, default=50, help="steps between two lines, and two checkpoints")
    parser.add_argument("--plot", type=Path, help="a PNG of the loss; needs matplotlib")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    o = parser.parse_args(arguments)
    losses = train(o.dataset, o.steps, o.batch_size, o.seed, o.checkpoint, o.every, o.device)
    if o.plot:
        plot(losses, o.plot)
    return losses


if __name__ == "__main__":
    main()
