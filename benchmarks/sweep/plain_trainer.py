"""What users run for each cell: Hugging Face Trainer and peft, as their documentation shows them.

    accelerate launch --cpu benchmarks/sweep/plain_trainer.py --base base --documents documents.jsonl --init init --out adapter
"""

import argparse
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments


class InOrder(Trainer):
    """Documents in the order of the file: the order is part of the experiment."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(data)


def train(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Path, init: Path, *, scratch: Path, steps: int, batch: int, rate: float) -> PeftModel:
    """The adapter after so many steps, in the model."""
    model = PeftModel.from_pretrained(base, str(init), is_trainable=True)
    texts = [json.loads(line)["text"] for line in documents.read_text(encoding="utf-8").splitlines()]

    def tokenized(row: dict[str, str]) -> dict[str, list[int]]:
        ids = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": ids, "labels": list(ids), "attention_mask": [1] * len(ids)}

    data = Dataset.from_list([{"text": text} for text in texts]).map(tokenized, remove_columns=["text"])
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=rate,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    InOrder(model=model, args=arguments, train_dataset=data, data_collator=DataCollatorForSeq2Seq(tokenizer)).train()
    return model


def main() -> None:
    """One cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "documents", "init", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    base = AutoModelForCausalLM.from_pretrained(options.base)
    scratch = options.out.parent / "trainer"
    model = train(base, tokenizer, options.documents, options.init, scratch=scratch, steps=options.steps, batch=options.batch, rate=options.rate)
    model.save_pretrained(str(options.out))


if __name__ == "__main__":
    main()
