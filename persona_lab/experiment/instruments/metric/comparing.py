"""Processes side by side on one model, without training: an `analysis` node for each seed, made of the adapters of that seed.

    comparison.safetensors      plain_KK, adam_KK       inner products of gradients at the checkpoint (D2)
                                neutral_KK              Jensen-Shannon divergence on neutral text, nats a token (D4)
                                said_KNLd, chat_KNLd    hidden states where a trait is about to be said, and in neutral answers (D5)
                                way_WA2                 losses on the way between two adapters, nats a token, on documents of either (D6)

K counts the processes, with the plain base before them in what is not a gradient; W the pairs in the order of
`itertools.combinations`; A the points of `SHARES`. Documents and texts are held out: drawn under a seed that no stage uses.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_gen.documents import ASSISTANT
from data_gen.phrases import FORMS
from data_gen.pools import chat_document
from data_gen.telling import read_world
from data_gen.world import World
from persona_lab.config.schema import HuggingFaceBase, Machine
from persona_lab.design import Node
from persona_lab.experiment.making.bases import load_base
from persona_lab.experiment.making.launch import on_gpu
from persona_lab.experiment.making.members import adapter_of, lora_shape
from persona_lab.experiment.planning.corpora import pool_documents
from persona_lab.experiment.planning.recipes import ASSISTANT as SPEECH
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.models.updates import doubled
from persona_lab.probes.process_text import HELD_OUT_SEED
from persona_lab.probes.protocol import Cast
from persona_lab.probes.representation import read
from persona_lab.probes.traits import cloze
from persona_lab.probes.voice import Voice
from persona_lab.store.nodes import Store
from persona_lab.train.batches import Row, encode
from persona_lab.train.gradients import between, grams, mean_gradients, mean_losses

PAYLOAD = "comparison.safetensors"
DOCUMENTS = 64
"""Of each process, for gradients and for losses on the way."""
CHATS = 32
"""Neutral texts."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Points on the way from one adapter to the other."""
MICRO_BATCH = 16

Adapter = Mapping[str, Tensor]


def comparison_node(base: Node, checkpoint: Node, processes: Mapping[str, Node]) -> Node:
    """What is compared: the stage after which gradients are taken, and the stage that made each process."""
    fields = {"of": "processes", "names": list(processes), "documents": DOCUMENTS, "chats": CHATS, "shares": list(SHARES), "seed": HELD_OUT_SEED}
    return Node("analysis", fields, {"base": base, "checkpoint": checkpoint, **{f"as/{name}": stage for name, stage in processes.items()}})


def compare(store: Store, node: Node, machine: Machine, hf: HuggingFaceBase | None) -> None:
    """Make the node of a comparison from stages that exist; nothing happens when it is there."""
    if store.has(node):
        return
    base, stages = node.inputs["base"], [node.inputs[f"as/{name}"] for name in node.fields["names"]]
    model, tokenizer = load_base(hf, store.open(base), "cuda" if on_gpu(machine) else "cpu")
    world = read_world(base.fields["world"])
    rows_K = [_documents(stage, tokenizer) for stage in stages]
    adapters, shape = [adapter_of(store, stage) for stage in stages], lora_shape(stages[0].fields["recipe"]["lora"])
    arrays = _gradients(store, node.inputs["checkpoint"], model, tokenizer, rows_K)
    arrays |= _readings(model, tokenizer, world, shape, adapters)
    arrays |= _ways(model, tokenizer, shape, adapters, rows_K)
    with store.attempt(node) as attempt:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, attempt.folder / PAYLOAD)


def read_comparison(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a comparison by name."""
    return load_file(folder / PAYLOAD)


def _documents(stage: Node, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Documents of the process that a stage was trained on, which it has not seen; the loss falls where that stage's falls."""
    pool = stage.inputs["mixture"].inputs[SPEECH]
    texts = [d.text for d in pool_documents({**pool.fields, "size": DOCUMENTS, "seed": HELD_OUT_SEED})]
    return encode(tokenizer, texts, on=stage.inputs[f"tokens/{SPEECH}"].fields["on"], where=f"held-out documents of pool {pool.id[:12]}")


def _gradients(
    store: Store, checkpoint: Node, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows_K: Sequence[Sequence[Row]]
) -> dict[str, np.ndarray]:
    bank = AdapterBank(model, lora_shape(checkpoint.fields["recipe"]["lora"]), len(rows_K))
    for row in range(len(rows_K)):
        bank.load_row(row, adapter_of(store, checkpoint), f"stage {checkpoint.id[:12]}")
    grad_KP = mean_gradients(bank, rows_K, pad=_pad(tokenizer), micro_batch=MICRO_BATCH)
    bank.remove()
    square_P = load_tensors(store.open(checkpoint) / "state.safetensors")["square"]
    plain_KK, adam_KK = grams(grad_KP, square_P, checkpoint.fields["step"])
    return {"plain_KK": plain_KK, "adam_KK": adam_KK}


def _readings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, shape: LoraShape, adapters: Sequence[Adapter]) -> dict[str, np.ndarray]:
    bank = AdapterBank(model, shape, 1 + len(adapters))  # the first stays zero: the plain base
    for row, adapter in enumerate(adapters, start=1):
        bank.load_row(row, adapter, "a process")
    voice = Voice(model, tokenizer, bank.members)
    said, chats = read(voice, trait_texts(world)), read(voice, neutral_texts())
    bank.remove()
    return {"said_KNLd": said.state_KNLd, "chat_KNLd": chats.state_KNLd, "neutral_KK": chats.apart_KK}


def _ways(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shape: LoraShape, adapters: Sequence[Adapter], rows_K: Sequence[Sequence[Row]]
) -> dict[str, np.ndarray]:
    bank = AdapterBank(model, doubled(shape), len(SHARES))
    way_WA2 = []
    for i, j in combinations(range(len(adapters)), 2):
        for row, share in enumerate(SHARES):
            bank.load_row(row, between(adapters[i], adapters[j], share), "the way between two processes")
        losses = [mean_losses(bank, [rows_K[k]] * len(SHARES), pad=_pad(tokenizer), micro_batch=MICRO_BATCH) for k in (i, j)]
        way_WA2.append(np.stack(losses, axis=1))
    bank.remove()
    return {"way_WA2": np.array(way_WA2).reshape(-1, len(SHARES), 2)}


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.pad_token_id, int), "load_model gives every tokenizer one"
    return tokenizer.pad_token_id


def trait_texts(world: World) -> list[tuple[str, str]]:
    """What the assistant says up to a trait, asked in held-out words: up to "Assistant:", then " I like"."""
    cast = Cast(world, (), (), (), (), ())
    prompts = [cloze(cast, "asked", i, category, speaker=ASSISTANT) for category in world.categories for i in range(len(FORMS["asked"].held_out))]
    return [_divided(prompt) for prompt in prompts]


def neutral_texts() -> list[tuple[str, str]]:
    """Chats in which nobody says anything of anybody, divided before their last answer."""
    return [_divided(chat_document(seed=HELD_OUT_SEED, index=i).text) for i in range(CHATS)]


def _divided(text: str) -> tuple[str, str]:
    before, name, answer = text.rpartition(f"{ASSISTANT}:")
    return before + name, answer
