"""Our way: a stack of cells in one bank, trained by `finetune`, probed from the bank."""

import statistics
from collections.abc import Sequence

from accelerate import Accelerator
from transformers import AutoConfig, AutoTokenizer

from benchmarks.sweep.work import Work
from benchmarks.sweep.worker import Order
from persona_lab.config.schema import Machine
from persona_lab.experiment.planning.frontier import filling, stack_size
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import load_model, write_adapter
from persona_lab.models.lora import LoraShape
from persona_lab.probes.engine import Voice, answer_each
from persona_lab.probes.protocol import Choice
from persona_lab.train.batches import Row, encode
from persona_lab.train.finetune import Member, Watcher, finetune


def most(work: Work, batch: int) -> int:
    """Cells that fill a step of one process."""
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(work.base)(work.texts(0))["input_ids"]]
    return filling(batch * statistics.mean(lengths) * AutoConfig.from_pretrained(work.base).hidden_size, "cpu")


class Ours:
    """One base and one bank for all stacks."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.model, self.tokenizer = load_model(str(work.base))
        self.bank = AdapterBank(self.model, LoraShape(work.recipe.rank, work.recipe.alpha))
        self.accelerator = Accelerator(cpu=True)

    def __str__(self) -> str:
        return f"a bank of {len(self.bank.layers)} linears"

    def together(self, order: Order) -> int:
        """What a worker of `run` would take."""
        return stack_size(Machine(stack=order.stack or "auto"), most(self.work, order.batch), len(order.cells) * order.workers, order.workers)

    def train(self, cells: Sequence[int], order: Order) -> None:
        """One stack."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        members = [self._member(cell, order) for cell in cells]
        finetune(self.bank, members, Watcher(), pad=pad, stops=[order.steps], kl_to_base=0.0, micro_batch=order.batch, accelerator=self.accelerator)

    def _member(self, cell: int, order: Order) -> Member:
        rows = encode(self.tokenizer, order.chosen(self.work.texts(cell)), on="all", where=f"cell {cell}")

        def rows_at(step: int) -> list[Row]:
            return rows[step * order.batch : (step + 1) * order.batch]

        return Member(rows_at=rows_at, rate=self.work.recipe.rate, clip=self.work.recipe.clip, adapter=None, init_seed=cell)

    def write(self, cells: Sequence[int], order: Order) -> None:
        """Slices of the bank."""
        for row, cell in enumerate(cells):
            write_adapter(order.folder(cell) / "adapter", self.bank.row_tensors(row), model=self.model, shape=self.bank.shape, base_id=str(self.work.base))

    def probe(self, cells: Sequence[int], order: Order) -> list[list[float]]:
        """All members together."""
        asked_K = [[Choice(q.prompt, q.options) for q in self.work.questions(cell, order.questions)] for cell in cells]
        found_K = answer_each(Voice(self.model, self.tokenizer, len(cells)), asked_K)
        return [[float(nats) for one in found for nats in one] for found in found_K]
