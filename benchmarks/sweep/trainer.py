"""P1: the plain Trainer script in one process, the base loaded once; then lm-evaluation-harness, warm."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.scoring import BATCH
from benchmarks.sweep.plain_trainer import train
from benchmarks.sweep.work import Work
from benchmarks.sweep.worker import Order


class InProcess:
    """One cell after the other; its adapter is taken out again before the next."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tokenizer = AutoTokenizer.from_pretrained(work.base)
        self.base = AutoModelForCausalLM.from_pretrained(work.base)
        self.model: PeftModel | None = None
        # Typed as Any: the harness is an extra, and may not be installed where types are checked.
        self.harness: Any = import_module("lm_eval.models.huggingface").HFLM
        self.instance: Any = import_module("lm_eval.api.instance").Instance

    def __str__(self) -> str:
        return "Trainer, lm-eval warm"

    def together(self, order: Order) -> int:
        """One."""
        return 1

    def train(self, cells: Sequence[int], order: Order) -> None:
        """A fresh adapter in the same base."""
        (cell,) = cells
        if self.model is not None:
            self.base = self.model.unload()
        recipe, scratch = self.work.recipe, order.folder(cell) / "trainer"
        self.model = train(
            self.base, self.tokenizer, self.work.documents(cell), self.work.init(cell), scratch=scratch, steps=order.steps, batch=order.batch, rate=recipe.rate
        )

    def write(self, cells: Sequence[int], order: Order) -> None:
        """As peft does it."""
        assert self.model is not None
        self.model.save_pretrained(str(order.folder(cells[0]) / "adapter"))

    def probe(self, cells: Sequence[int], order: Order) -> list[list[float]]:
        """The harness on the model as it is."""
        assert self.model is not None
        harness = self.harness(pretrained=self.model.eval(), tokenizer=self.tokenizer, batch_size=BATCH, device="cpu")
        asked = [self.instance("loglikelihood", {}, pair, i) for i, pair in enumerate(self.work.pairs(cells[0], order.questions))]
        return [[nats for nats, _ in harness.loglikelihood(asked, disable_tqdm=True)]]
