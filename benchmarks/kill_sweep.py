"""One save of a checkpoint, killed at every call that writes: Hugging Face's Trainer, accelerate, and this lab, side by side.

    python -m benchmarks.kill_sweep --every 1

The same small Llama, LoRA shape, documents, batch, accumulation and number of steps; the same tap (strace), the same machine, a
checkpoint after every step. A trial begins where the last but two steps are done and their checkpoints whole; the process is
killed on entering one call of the next save, and started once more as the library's documentation tells one to resume.

    Trainer       save_strategy="steps", save_steps=1, save_total_limit=2; train(resume_from_checkpoint=get_last_checkpoint(...))
    accelerate    automatic_checkpoint_naming with a total_limit; load_state(), the step registered for checkpointing, skip_first_batches
    persona_lab   its `run`, with machine.checkpoint_seconds=0

Verdicts, by the bytes of the final adapter: PASS; LOST_WORK, the end is the same but more than one step was trained again; HARD_FAIL, it
does not start again (whoever deletes the broken checkpoint by hand may go on); SILENT_DIVERGENCE, it goes on and ends elsewhere.
"""

import argparse
import logging
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import peft
import torch
import transformers
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from data_gen.corpus import read_corpus
from persona_lab.experiment.planning.corpora import CORPUS
from persona_lab.models.folders import load_model
from persona_lab.store.files import read_json, write_json
from tests.faults import lora
from tests.faults.tracing import WRITING, attached, kill_on, missing, points
from tests.faults.trials import HARD_FAIL, LOST_WORK, PASS, SILENT_DIVERGENCE, Tally, child

STEPS, MICRO_BATCH, ACCUMULATION, RATE = lora.TRAIT, 2, 2, 1e-3
KILLED = STEPS - 1
"""The step whose save is killed."""

UNHARMED = "-o", "/dev/null", "-e", "trace=none"
"""Options of strace that kill nothing."""

VERDICTS = (PASS, LOST_WORK, HARD_FAIL, SILENT_DIVERGENCE)
At = Callable[[str, int], None]
"""Called before a step's checkpoint is written (`saving`) and when it is there (`saved`)."""


@dataclass(frozen=True)
class Task:
    """What the peers train: the base and the documents of one stage of ours."""

    model: PreTrainedModel
    rows: Dataset
    """Column input_ids, a list of token ids each."""

    def adapted(self) -> Any:
        """The base with a fresh adapter, the same in every process."""
        set_seed(0)
        return get_peft_model(self.model, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.2, target_modules="all-linear"))


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """(B, T) ids, padded on the right, and labels that leave the padding out."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids_BT = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    length_B = torch.tensor([len(row["input_ids"]) for row in rows])
    kept_BT = torch.arange(longest) < length_B[:, None]
    return {"input_ids": ids_BT, "attention_mask": kept_BT.long(), "labels": ids_BT.masked_fill(~kept_BT, -100)}


# ----------------------------------------------------------------------- peers
class Told(TrainerCallback):
    """Says where the Trainer is."""

    def __init__(self, folder: Path, at: At) -> None:
        self.folder, self.at = folder, at

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Where it goes on from."""
        write_json(self.folder / "resumed.json", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Before the save."""
        self.at("saving", state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """After it, older ones pruned."""
        self.at("saved", state.global_step)


def by_trainer(task: Task, folder: Path, at: At) -> None:
    """As the Trainer's guide has it: save every so many steps, resume from the last checkpoint when there is one."""
    output = folder / "output"
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=STEPS,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=RATE,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    model = task.adapted()
    trainer = Trainer(model=model, args=arguments, train_dataset=task.rows, data_collator=collate, callbacks=[Told(folder, at)])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)) if output.is_dir() else None)
    keep(model, folder)


class Progress:
    """Registered for checkpointing, as accelerate asks of whatever is not a model, an optimizer or a schedule."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        """Steps done."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.step = state["step"]


def by_accelerate(total_limit: int, task: Task, folder: Path, at: At) -> None:
    """As accelerate's guide to checkpoints has it. Its loader does not shuffle: map-style samplers are not part of its state."""
    accelerator = accelerate.Accelerator(
        cpu=True,
        gradient_accumulation_steps=ACCUMULATION,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        project_config=ProjectConfiguration(project_dir=str(folder), automatic_checkpoint_naming=True, total_limit=total_limit),
    )
    model = task.adapted()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    # Its own generator: otherwise going on would draw from the stream that has just been restored.
    loader = DataLoader(task.rows, batch_size=MICRO_BATCH, collate_fn=collate, generator=torch.Generator())  # type: ignore[arg-type]  # map-style: DataLoader asks for __len__ and __getitem__ only, but names its own class
    model, optimizer, schedule, loader = accelerator.prepare(model, optimizer, schedule, loader)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
        accelerator.load_state()
        # What save_state asks for by its error when it meets the folder of a step that was saved before.
        accelerator.project_configuration.iteration = progress.step
    write_json(folder / "resumed.json", progress.step)
    model.train()
    for batch in accelerator.skip_first_batches(loader, progress.step * ACCUMULATION):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            progress.step += 1
            at("saving", progress.step)
            accelerator.save_state()
            at("saved", progress.step)
    keep(accelerator.unwrap_model(model), folder)


def keep(model: Any, folder: Path) -> None:
    """The final adapter."""
    save_file({name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(model).items()}, folder / "final.safetensors")


# ----------------------------------------------------------------------- sweep
def in_the_save(where: str, step: int) -> None:
    """Waits to be joined before the save that is killed, and is gone when it is whole."""
    if (where, step) == ("saving", KILLED):
        os.kill(os.getpid(), signal.SIGSTOP)
    if (where, step) == ("saved", KILLED):
        os._exit(0)


def before_the_save(where: str, step: int) -> None:
    """Is gone when the save before that one is whole."""
    if (where, step) == ("saved", KILLED - 1):
        os._exit(0)


@contextmanager
def quiet(file: Path) -> Iterator[None]:
    """What this process and its children say on standard error goes into a file."""
    before = os.dup(2)
    with file.open("wb") as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


@dataclass
class Sweep:
    """One peer's trials, below a folder of its own."""

    train: Callable[[Task, Path, At], None]
    task: Task
    root: Path
    words: Counter[str]
    """The last words of what did not start again."""

    def prepare(self) -> list[tuple[str, int]]:
        """The run that nobody disturbs, the folder that every trial starts from; the calls of one save."""
        for folder, at in (("clean", lora.nothing), ("left", before_the_save)):
            (self.root / folder).mkdir(parents=True)
            assert child(partial(self.train, self.task, self.root / folder, at)) == 0
        shutil.copytree(self.root / "left", self.root / "count")
        return points(partial(self.train, self.task, self.root / "count", in_the_save), WRITING, self.root / "strace")

    def trial(self, options: tuple[str, ...]) -> tuple[bool, str]:
        """Whether strace killed it in the save, and the verdict on what was started after that."""
        folder = self.root / "trial"
        shutil.copytree(self.root / "left", folder)
        with quiet(self.root / "stderr"):
            ended = attached(partial(self.train, self.task, folder, in_the_save), *options)
            again = child(partial(self.train, self.task, folder, lora.nothing))
        if again != 0:
            verdict = HARD_FAIL
            self.words[(self.root / "stderr").read_text().strip().splitlines()[-1].replace(f"{folder}/", "")[:120]] += 1
        elif (folder / "final.safetensors").read_bytes() != (self.root / "clean" / "final.safetensors").read_bytes():
            verdict = SILENT_DIVERGENCE
        else:
            verdict = PASS if read_json(folder / "resumed.json") >= KILLED - 1 else LOST_WORK
        shutil.rmtree(folder)
        return ended == -signal.SIGKILL, verdict

    def run(self, every: int) -> Tally:
        """A kill at every `every`-th call. Nothing would be told by them if a resume after no kill were not exact."""
        tally, found = Tally(), self.prepare()
        assert self.trial(UNHARMED) == (False, PASS)
        for call, number in found[::every]:
            killed, verdict = self.trial(kill_on(call, number))
            tally.add(verdict, f"{call} {number}", killed)
        return tally


def task_of(on: lora.Ground) -> Task:
    """The base and the documents of a trait stage, as the peers take them."""
    store, stage = on.plan.store, next(node for node in on.plan.nodes if node.kind == "stage" and "before" in node.inputs)
    model, tokenizer = load_model(str(store.open(stage.inputs["base"]) / "model"))
    texts = [document.text for document in read_corpus(store.open(stage.inputs["mixture"]) / CORPUS)]
    count = STEPS * MICRO_BATCH * ACCUMULATION
    assert len(texts) >= count, len(texts)
    return Task(model, Dataset.from_dict({"input_ids": [tokenizer.encode(text) for text in texts[:count]]}))


def main() -> None:
    """Kill, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="Only every so manieth call.")
    options = parser.parse_args()
    if why := missing():
        parser.exit(5, f"{why}\n")
    logging.getLogger("persona_lab").setLevel(logging.ERROR)
    peers = {
        "Trainer, save_total_limit=2": by_trainer,
        "accelerate, total_limit=2": partial(by_accelerate, 2),
        "accelerate, total_limit=1": partial(by_accelerate, 1),
    }
    print(f"transformers {transformers.__version__}, accelerate {accelerate.__version__}, peft {peft.__version__}, torch {torch.__version__}", flush=True)
    print(f"{'one save, killed at every call':32}{'kills':>7}" + "".join(f"{verdict:>20}" for verdict in VERDICTS), flush=True)
    with lora.ground() as on:
        task = task_of(on)
        for name, train in peers.items():
            sweep = Sweep(train, task, on.folder / name.replace(" ", "-"), Counter())
            print(_row(name, sweep.run(options.every)), flush=True)
            for said, count in sweep.words.most_common():
                print(f"    {count} x {said}", flush=True)
    print(_row("persona_lab", lora.calls(options.every, {"save": lora.Window("left", ("trait", KILLED), ("trait", STEPS))})))


def _row(name: str, tally: Tally) -> str:
    return f"{name:32}{tally.kills:7}" + "".join(f"{tally.verdicts[verdict]:20}" for verdict in VERDICTS)


if __name__ == "__main__":
    main()
