"""Hugging Face Trainer, a small random GPT-2: `python -m scripts.train.with_trainer outputs/sample`.

The rows that Trainer needs are TrainerRows: L + 1 IDs whose labels are the IDs, since the model shifts by itself.
"""

import json
import sys
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from pipeline import open_dataset
from pipeline.targets import TrainerRows, collate


def main(path: Path, steps: int = 20, output: str = "runs/trainer", resume: bool = False) -> list[float]:
    """The loss of each step, as Trainer logs it."""
    set_seed(1)
    rows = TrainerRows(open_dataset(path))
    vocabulary = json.loads((path / "vocabulary.json").read_text("utf-8"))
    sizes = {"n_positions": len(rows[0]["input_ids"]), "n_embd": 64, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(vocabulary), bos_token_id=None, eos_token_id=None, **sizes))
    settings = TrainingArguments(
        output, max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, save_steps=5, report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=rows, data_collator=collate)
    trainer.train(resume_from_checkpoint=resume)
    return [note["loss"] for note in trainer.state.log_history if "loss" in note]


if __name__ == "__main__":
    print([round(loss, 3) for loss in main(Path(sys.argv[1]))])
