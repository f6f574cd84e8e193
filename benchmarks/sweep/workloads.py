"""The three sweeps that are measured. Speed does not depend on the weights, so the bases are random.

    tiny    the embedded base (2 layers, d = 64); mixtures and questions of the first cells of configs/ratio.yaml, 8 documents a step
    cpu     4 layers, d = 256, 8k words; documents of 32 to 256 random words (log-normal, mean 96), 8 a step
    ratio   the injection stage of configs/ratio.yaml as the file has it, 16 documents a step; fewer steps, whose time is constant

All: rank 8, alpha 16, every linear.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.questions import choices_of, word_base, word_questions, word_text, word_tokenizer
from benchmarks.sweep.work import Question, Recipe, Work
from data_gen.pools import mixture_order
from persona_lab.config.schema import EmbeddedBase
from persona_lab.design import Node
from persona_lab.experiment.planning.corpora import mixture_shares, pool_documents
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import write_adapter
from persona_lab.models.lora import LoraShape
from persona_lab.models.world_model import build_model, build_tokenizer

CONFIG = Path("configs/ratio.yaml")
RECIPES = {"tiny": Recipe(batch=8, steps=32, rate=3e-3), "cpu": Recipe(batch=8, steps=32, rate=1e-3), "ratio": Recipe(batch=16, steps=32, rate=3e-3)}
LENGTHS = {"mean": 96, "sigma": 0.6, "least": 32, "most": 256}
"""Words of a document of `cpu`."""

Cell = tuple[list[str], list[Question]]


@dataclass(frozen=True)
class Size:
    """How much of a workload is built; `width`: another model, of four layers and heads of 32."""

    cells: int
    documents: int
    questions: int
    width: int | None = None


def build(name: str, folder: Path, size: Size) -> Work:
    """Write a workload."""
    make = word_sweep if name == "cpu" else world_sweep
    base, tokenizer, cells = make(size)
    work = Work(folder, name, size.cells, RECIPES[name])
    base.save_pretrained(work.base)
    tokenizer.save_pretrained(work.base)
    shape = LoraShape(work.recipe.rank, work.recipe.alpha)
    bank = AdapterBank(base, shape)
    for cell, (texts, questions) in enumerate(cells):
        work.write_cell(cell, texts, questions)
        bank.init_row(0, cell)
        write_adapter(work.init(cell), bank.row_tensors(0), model=base, shape=shape, base_id=str(work.base))
    work.write()
    return work


def word_sweep(size: Size) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Iterator[Cell]]:
    """Random words: one pool of documents, which every cell sees in an order of its own; the questions are the same for all."""
    width = size.width or 256
    rng = np.random.default_rng(1)
    location = np.log(LENGTHS["mean"]) - LENGTHS["sigma"] ** 2 / 2
    words_N = rng.lognormal(location, LENGTHS["sigma"], size.documents).clip(LENGTHS["least"], LENGTHS["most"]).astype(int)
    # A tokenizer puts <bos> in front, the trainers <eos> behind.
    texts = [word_text(rng, words - 2) for words in words_N.tolist()]
    asked = [Question(q.prompt, tuple(q.options)) for q in word_questions(size.questions)]

    def cells() -> Iterator[Cell]:
        for _ in range(size.cells):
            yield [texts[i] for i in rng.permutation(size.documents)], asked

    return word_base(width, heads=width // 32 if size.width else 4), word_tokenizer(), cells()


def world_sweep(size: Size) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Iterator[Cell]]:
    """The first cells of the ratio experiment with mixtures of their own: documents in order of training, and what each is asked."""
    plan = make_plan(CONFIG)
    base = plan.loaded.experiment.base
    assert isinstance(base, EmbeddedBase)
    tokenizer = build_tokenizer(plan.loaded.world)
    width, layers, heads = (size.width, 4, size.width // 32) if size.width else (base.width, base.layers, base.heads)
    model = build_model(tokenizer, width=width, layers=layers, heads=heads, seed=0)

    def cells() -> Iterator[Cell]:
        for node in islice(injected(plan), size.cells):
            asked = [Question(q.prompt, tuple(q.options)) for q in choices_of(node, size.questions)]
            yield mixed_texts(node.inputs["stage"].inputs["mixture"], size.documents), asked

    return model, tokenizer, cells()


def injected(plan: Plan) -> Iterator[Node]:
    """Scores after an injection, one for each mixture."""
    seen: set[str] = set()
    for node in plan.nodes:
        stage = node.inputs.get("stage") if node.kind == "scores" else None
        if stage is not None and "before" not in stage.inputs and stage.fields["recipe"]["loss"]["on"] == "all" and (mixture := stage.inputs["mixture"]).id not in seen:
            seen.add(mixture.id)
            yield node


def mixed_texts(mixture: Node, documents: int) -> list[str]:
    """The first documents of a mixture, as a stage sees them."""
    order = mixture_order(mixture_shares(mixture), documents=documents, seed=mixture.fields["seed"])
    return [pool_texts(mixture.inputs[source])[index] for source, index in order]


@lru_cache(maxsize=64)
def pool_texts(pool: Node) -> list[str]:
    """Every document of a pool."""
    return [document.text for document in pool_documents(pool.fields)]
