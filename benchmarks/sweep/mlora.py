"""P4: mLoRA (github.com/TUDB-Labs/mLoRA, Ye et al. 2025) as it is, on a processor, which its main program refuses.

It runs in a Python of its own (3.12, torch 2.2, transformers 4.38), so nothing of ours is imported but the files' format:

    git clone https://github.com/TUDB-Labs/mLoRA
    python3.12 -m venv its
    its/bin/pip install torch==2.2.1 'numpy<2' 'pyarrow<18' transformers==4.38.2 einops==0.6.1 accelerate==0.24.1 datasets==2.14.5
    its/bin/pip install sentencepiece==0.2.0 protobuf==3.20.2 scipy==1.11.4 tensorboard==2.17.0 setuptools
    python -m benchmarks.sweep --mlora its/bin/python mLoRA

Its adapters do not equal the others': it trains on the padding, and it does not clip. (With the padding left out of its
loss they did, to 3e-6 nats after 8 steps of `tiny`.) Weight decay is set to zero, and dropout to 1e-12, because it
asserts that there is some.
"""

import argparse
import json
import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from benchmarks.sweep.work import Work
from benchmarks.sweep.worker import Order

STACK = 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Mlora:
    """Its model and its executor."""

    def __init__(self, work: Work) -> None:
        self.work = work
        # Its executor asks the GPU for its memory after each step.
        torch.cuda.reset_peak_memory_stats = lambda device=None: None
        torch.cuda.max_memory_allocated = lambda device=None: 0
        # Its tokenizer goes through AutoTokenizer, whose 4.38 does not know the class that 5 writes.
        transformers: Any = import_module("transformers")
        named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": pad_token(work)}
        transformers.AutoTokenizer.from_pretrained = lambda path, **_: transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(path, "tokenizer.json"), **named)
        options = {"base_model": str(work.base), "model_type": "llama", "device": "cpu", "precision": "fp32", "pipeline": False}
        self.tokenizer, self.model = import_module("mlora.model").load_model(argparse.Namespace(**options))
        self.executor: Any = import_module("mlora.executor").Executor
        self.config: Any = import_module("mlora.config").MLoRAConfig
        self.save: Any = import_module("safetensors.torch").save_file
        self.load: Any = import_module("safetensors.torch").load_file
        self.trained: dict[str, dict[str, torch.Tensor]] = {}

    def __str__(self) -> str:
        return f"stacks of {STACK}, torch {torch.__version__}"

    def together(self, order: Order) -> int:
        """As asked, or 8."""
        return order.stack or STACK

    def train(self, cells: Sequence[int], order: Order) -> None:
        """One stack."""
        config = self.config(self._config(cells, order))
        executor = self.executor(self.model, self.tokenizer, config)
        for task in config.tasks_:
            executor.add_task(task)
        for cell, task in zip(cells, executor.dispatcher_.ready_, strict=True):
            task.context_.recover_weight(self.load(self.work.init(cell) / "adapter_model.safetensors"))
            for group in task.context_.optimizer_.param_groups:
                group["weight_decay"] = 0.0
        # First of all: mLoRA's own callback forgets the weights.
        executor.dispatcher_.done_event_.callback_list_.insert(0, self._keep)
        executor.execute()

    def _keep(self, task: Any) -> None:
        self.trained[task.task_name()] = {name: weight.detach().clone() for name, weight in task.context_.weight_dict().items()}

    def _config(self, cells: Sequence[int], order: Order) -> str:
        """The file that describes a stack; JSON is YAML."""
        recipe, folder = self.work.recipe, order.folder(cells[0])
        template = folder / "template.json"
        template.write_text(json.dumps({"template": "{{ data_point['text'] }}"}))
        adapter = {"type": "lora", "optimizer": "adamw", "lr": recipe.rate, "r": recipe.rank, "alpha": recipe.alpha, "dropout": 1e-12, "target_modules": dict.fromkeys(TARGETS, True)}
        task = {"type": "train", "batch_size": order.batch, "mini_batch_size": order.batch, "num_epochs": 1, "cutoff_len": 4096, "save_step": 10**9}
        data = {"prompt": str(template), "prompt_type": "instruction", "preprocess": "default"}
        texts = {cell: folder / f"documents-{cell}.json" for cell in cells}
        for cell, file in texts.items():
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in order.chosen(self.work.texts(cell))))
        config = {
            "dispatcher": {"name": "default", "concurrency_num": len(cells)},
            "datasets": [{**data, "name": f"d{cell}", "data": str(file)} for cell, file in texts.items()],
            "adapters": [{**adapter, "name": f"a{cell}", "path": str(order.folder(cell) / "own")} for cell in cells],
            "tasks": [{**task, "name": str(cell), "adapter": f"a{cell}", "dataset": f"d{cell}"} for cell in cells],
        }
        file = folder / "stack.json"
        file.write_text(json.dumps(config))
        return str(file)

    def write(self, cells: Sequence[int], order: Order) -> None:
        """As safetensors, which the judge reads; mLoRA's own folder is another format."""
        for cell in cells:
            folder = order.folder(cell) / "adapter"
            folder.mkdir(exist_ok=True)
            self.save(self.trained.pop(str(cell)), folder / "adapter_model.safetensors")

    def probe(self, cells: Sequence[int], order: Order) -> list[list[float]]:
        """It trains only."""
        raise NotImplementedError("mLoRA is measured in training only: its orders have no questions")


def pad_token(work: Work) -> str:
    """What the base's tokenizer pads with."""
    return json.loads((work.base / "tokenizer_config.json").read_text())["pad_token"]
