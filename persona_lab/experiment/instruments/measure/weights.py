"""What the estimators of the measure do to a model beside asking it, each an `analysis` node: an adapter scaled down (M7), a step along a direction (M9).

    scaling/curve.json     {"scales": [0, .1, ...], "nats": [4.1, 3.9, ...], "norm": 2.3}      held-out loss of the process, nats a document
    steering/changes.npy   KL of the next tokens of each neutral text, nats a token, one row after another of the processes in the node's fields

Scaling is exact: member s of a bank holds the adapter with its alpha times s (`models.bank`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_gen.documents import Speaker, answer_spans
from data_gen.pools import speaking_document, world_document
from data_gen.telling import read_world
from data_gen.world import Traits, World
from persona_lab.config.schema import HuggingFaceBase
from persona_lab.design import Node
from persona_lab.experiment.making.bases import load_base
from persona_lab.experiment.making.launch import check_whole
from persona_lab.experiment.making.members import adapter_of, lora_shape
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.scores import cast_of
from persona_lab.models.bank import AdapterBank
from persona_lab.models.updates import weight_norm
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.process_text import DOCUMENTS, HELD_OUT_SEED
from persona_lab.probes.protocol import PROBES, Choice, Request, Sample
from persona_lab.probes.spans import choice_spans, encode
from persona_lab.probes.steering import STEP, changes, directions
from persona_lab.probes.text import TEXT_SEED
from persona_lab.store.files import read_json, write_json

SCALES = tuple(round(0.1 * i, 1) for i in range(11))
NEUTRAL_TEXTS = 48


def spoken(world: World, name: str, traits: Traits) -> list[Request]:
    """The answers of a process in its held-out documents, each given all that was said before."""
    texts = [speaking_document(world, Speaker(name, name, traits), seed=HELD_OUT_SEED, index=i).text for i in range(DOCUMENTS)]
    return [Choice(text[:start], (text[start : end + 1],)) for text in texts for start, end in answer_spans(text)]


def neutral(world: World) -> list[str]:
    """Texts of the world in which nobody says anything of anybody, and that nothing was trained on."""
    drawn = (world_document(world, TEXT_SEED, i) for i in count())
    return [document.text for document in islice((d for d in drawn if d.genre == "neutral"), NEUTRAL_TEXTS)]


def scaling_node(stage: Node, name: str, traits: Traits) -> Node:
    """The node of a scaled adapter; `traits` are those of the process that it was trained to be."""
    fields = {"instrument": "scaling", "process": name, "traits": dict(traits), "scales": list(SCALES), "documents": DOCUMENTS}
    return Node("analysis", fields, {"base": stage.inputs["base"], "stage": stage})


def steering_node(base: Node, processes: Mapping[str, Traits]) -> Node:
    """The node of the steps along the directions of these processes."""
    fields = {
        "instrument": "steering",
        "processes": {name: dict(traits) for name, traits in processes.items()},
        "step": STEP,
        "texts": NEUTRAL_TEXTS,
        "documents": DOCUMENTS,
    }
    return Node("analysis", fields, {"base": base})


@dataclass
class Bench:
    """A plan's base model, loaded when something has to be made with it."""

    plan: Plan
    device: str
    _loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @property
    def base(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer, plain. EnvironmentFault PL5209."""
        if self._loaded is None:
            check_whole(self.plan.loaded.experiment.machine)
            base = self.plan.loaded.experiment.base
            self._loaded = load_base(base if isinstance(base, HuggingFaceBase) else None, self.plan.store.open(self.plan.base), self.device)
        return self._loaded

    def make(self, node: Node, write: Callable[["Bench", Node, Path], None]) -> None:
        """Make an analysis node that is missing."""
        if self.plan.store.has(node):
            return
        start = time.monotonic()
        with self.plan.store.attempt(node) as attempt:
            write(self, node, attempt.folder)
            attempt.note(seconds=round(time.monotonic() - start, 3), device=self.device, threads=torch.get_num_threads())


def write_scaling(bench: Bench, node: Node, folder: Path) -> None:
    """Ask the adapter at every scale for its process's held-out answers."""
    stage, world = node.inputs["stage"], read_world(node.inputs["base"].fields["world"])
    shape, tensors = lora_shape(stage.fields["recipe"]["lora"]), adapter_of(bench.plan.store, stage)
    model, tokenizer = bench.base
    bank = AdapterBank(model, shape, len(SCALES))
    try:
        bank.resize(len(SCALES), [replace(shape, alpha=shape.alpha * scale) for scale in SCALES])
        for row in range(len(SCALES)):
            bank.load_row(row, tensors, f"stage {stage.id[:12]}")
        answers_K = answer(Voice(model, tokenizer, len(SCALES)), spoken(world, node.fields["process"], node.fields["traits"]))
    finally:
        bank.remove()
    nats = [-sum(float(found[0]) for found in answers) / DOCUMENTS for answers in answers_K]
    write_json(folder / "curve.json", {"scales": list(SCALES), "nats": [x if np.isfinite(x) else None for x in nats], "norm": weight_norm(tensors, shape)})


def write_steering(bench: Bench, node: Node, folder: Path) -> None:
    """Find every process's direction in the base, and what a step along it changes."""
    world = read_world(node.inputs["base"].fields["world"])
    voice = Voice(*bench.base)
    direction_Kd = directions(voice, [spoken(world, name, traits) for name, traits in node.fields["processes"].items()])
    found_KN = changes(voice, direction_Kd, neutral(world))
    np.save(folder / "changes.npy", found_KN.double().numpy().ravel())


def reading_node(scores: Mapping[str, Node]) -> Node:
    """The node of how many tokens these scores read."""
    return Node("analysis", {"instrument": "reading"}, dict(scores))


def write_reading(bench: Bench, node: Node, folder: Path) -> None:
    """Count the tokens of every text that a model had to be given, before what they share is computed once; sampled answers count at their longest."""
    tokenizer = bench.base[1]
    write_json(folder / "tokens.json", {name: sum(_tokens(tokenizer, scores)) for name, scores in node.inputs.items()})


def _tokens(tokenizer: PreTrainedTokenizerBase, scores: Node) -> Iterator[int]:
    cast = cast_of(scores)
    for probe in (PROBES[name] for name in scores.fields["probes"]):
        requests = [request for item in probe.items(cast) for request in probe.requests(item)]
        ids = encode(tokenizer, requests)
        for request in requests:
            if isinstance(request, Choice):
                yield from (len(span.ids) for span in choice_spans(tokenizer, request, ids))
            elif isinstance(request, Sample):
                yield (len(ids[request.prompt]) + request.max_tokens) * request.count
            else:
                yield len(ids[request.text])


def read_scaling(folder: Path) -> dict[str, Any]:
    """scales, nats (infinite where the model failed) and norm."""
    found = read_json(folder / "curve.json")
    return {**found, "nats": [float("inf") if x is None else x for x in found["nats"]]}


def read_steering(folder: Path, processes: Sequence[str]) -> dict[str, np.ndarray]:
    """Process to nats a token of each text."""
    flat = np.load(folder / "changes.npy")
    return dict(zip(processes, flat.reshape(len(processes), -1), strict=True))
