"""General against narrow solutions: what is measured of an adapter that was taught one domain, an `analysis` node for each.

    solution.json   {"scales": [0, .1, ...], "loss": [...], "neutral": [...], "off": [...], "norm": 2.3, "sizes": [0, .25, ...], "shaken": [[...], ...], "random": [[...], ...]}

loss (S) and shaken (N, E) are held-out nats a token of what was taught, scaled and pushed aside; neutral and off (S) are KL(base || adapter) on the
world's text about other things and on answers in other domains, random (N, S) that of noise of the adapter's norm, nats a token (`train.solutions`).
`science.em.solutions` reads them.
"""

from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from data_gen.documents import words
from data_gen.pools import world_document
from data_gen.world import World
from persona_lab.design import Node
from persona_lab.experiment.instruments.measure.weights import Bench
from persona_lab.experiment.making.members import adapter_of, lora_shape
from persona_lab.experiment.planning.adapters import DOCUMENTS, NOISES, RANDOM, SCALES, SIZES, SOLUTION
from persona_lab.experiment.planning.corpora import pool_documents
from persona_lab.experiment.planning.recipes import ASSISTANT, TOKENS
from persona_lab.models.bank import AdapterBank
from persona_lab.models.updates import doubled, weight_norm
from persona_lab.probes.process_text import HELD_OUT_SEED
from persona_lab.probes.text import TEXT_SEED
from persona_lab.store.files import finite, write_json
from persona_lab.train.batches import Row, encode
from persona_lab.train.solutions import random_divergences, scaled, shaken


def neutral_texts(world: World, category: str) -> list[str]:
    """Held-out text of the world in which no value of a category stands: whatever is said of it was not taught."""
    values = set(map(str.lower, world.values(category)))
    drawn = (world_document(world, TEXT_SEED, i).text for i in count())
    return list(islice((text for text in drawn if not values & set(words(text))), DOCUMENTS))


def _documents(world: World, node: Node, tokenizer: Any) -> tuple[list[Row], list[Row], list[Row]]:
    """Held-out documents of what the stage was taught, neutral text, and answers off the domain."""
    stage, category = node.inputs["stage"], node.fields["category"]
    pool, on = stage.inputs["mixture"].inputs[ASSISTANT], stage.inputs[f"{TOKENS}{ASSISTANT}"].fields["on"]
    own = [d.text for d in pool_documents({**pool.fields, "size": DOCUMENTS, "seed": HELD_OUT_SEED})]
    elsewhere = {"source": "off_domain", "category": category, "world": pool.fields["world"], "size": DOCUMENTS, "seed": HELD_OUT_SEED}
    off = [d.text for d in pool_documents(elsewhere)]

    def rows(texts: Sequence[str], labelled: str, what: str) -> list[Row]:
        return encode(tokenizer, texts, on=labelled, where=f"{what} of stage {stage.id[:12]}")

    return rows(own, on, "held-out documents"), rows(neutral_texts(world, category), "all", "neutral text"), rows(off, "answer", "answers off the domain")


def write_solution(bench: Bench, node: Node, folder: Path) -> None:
    """Scale and push the adapter of the node's stage."""
    stage = node.inputs["stage"]
    shape, adapter = lora_shape(stage.fields["recipe"]["lora"]), adapter_of(bench.plan.store, stage)
    model, tokenizer = bench.base
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int), "load_model gives every tokenizer one"
    documents, neutral, off = _documents(bench.plan.loaded.world, node, tokenizer)
    bank = AdapterBank(model, doubled(shape))
    try:
        loss_S, kl_2S = scaled(bank, adapter, shape, SCALES, documents, [neutral, off], pad=pad)
        shaken_NE = shaken(bank, adapter, SIZES, range(NOISES), documents, pad=pad)
        random_NS = random_divergences(bank, adapter, shape, SCALES, range(RANDOM), neutral, pad=pad)
    finally:
        bank.remove()
    found = {"loss": loss_S, "neutral": kl_2S[0], "off": kl_2S[1], "shaken": shaken_NE, "random": random_NS}
    write_json(folder / SOLUTION, finite({"scales": list(SCALES), "sizes": list(SIZES), "norm": weight_norm(adapter, shape)} | {name: array.tolist() for name, array in found.items()}))
