"""The instrument `mechanism`: small bases that add, trained on text that says how, and whether what they say is what they do.

    persona-lab mechanism --seeds 3

A base is a node like any other, of the kind `sums`: no world, no personas, three sums a document with what is said of them (`data_gen.sums`). What
patching finds on it is an analysis node. Everything that is stated is computed from these (`science.introspection.mechanism`).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_gen.sums import HELD_OUT, SAYS, STATEMENTS, Pair, Sum, cue_pairs, held_out_sums, ones_pairs, says_carry, sums, sums_text, sums_words
from persona_lab.design import Node
from persona_lab.errors import CheckFailed
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.run import Progress
from persona_lab.models.folders import load_model
from persona_lab.models.world_model import word_tokenizer
from persona_lab.probes.patching import Gap, attributed, gaps_of, patched
from persona_lab.science.introspection.mechanism import EQUALS, MADE_AT, TOKENS, Patched
from persona_lab.store.nodes import Store
from persona_lab.train.loop import Diverged
from persona_lab.train.pretrain import pretrain

PAYLOAD = "patched.safetensors"
CHOSEN_ON = 200
"""Sums that are not held out, on which the layer is chosen."""


@dataclass(frozen=True)
class Adder:
    """The recipe of a base that adds."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 600
    batch: int = 32
    rate: float = 0.02
    rate_rest: float = 3e-3


def adder_node(adder: Adder, statement: str, seed: int) -> Node:
    """The base that is trained on one corpus."""
    return Node("base", {"kind": "sums", "statement": statement, "seed": seed, **asdict(adder)})


def patched_node(base: Node) -> Node:
    """What patching finds on a base."""
    return Node("analysis", {"instrument": "mechanism", "held_out": HELD_OUT, "chosen_on": CHOSEN_ON}, {"base": base})


def mechanism_nodes(adder: Adder, seeds: int) -> list[Node]:
    """The analysis of every corpus and seed."""
    return [patched_node(adder_node(adder, statement, seed)) for seed in range(seeds) for statement in STATEMENTS]


def make_mechanism(store: Store, nodes: Sequence[Node], progress: Progress, interruption: Interruption) -> None:
    """Make what is missing.

    Raises:
        CheckFailed: PL1108, a base diverged.
        Interrupted: a signal came; what was finished is kept.
    """
    accelerator = Accelerator(mixed_precision="no")
    for number, node in enumerate(nodes):
        progress("bases that add", number, len(nodes))
        base = node.inputs["base"]
        if not store.has(base):
            _make_adder(store, base, accelerator, interruption)
        if not store.has(node):
            _make_patched(store, node, str(accelerator.device), interruption)
    progress("bases that add", len(nodes), len(nodes))


def _make_adder(store: Store, node: Node, accelerator: Accelerator, interruption: Interruption) -> None:
    start, fields = time.monotonic(), node.fields
    tokenizer = word_tokenizer(sums_words())
    texts = [sums_text(fields["statement"], fields["seed"], i) for i in range(fields["steps"] * fields["batch"])]
    options = {name: fields[name] for name in ("width", "layers", "heads", "steps", "batch", "rate", "rate_rest", "seed")}
    with store.attempt(node) as attempt:
        try:
            model = pretrain(
                tokenizer, texts, accelerator=accelerator, on_step=lambda step, loss, norm: interruption.leave(), on_shrink=lambda step, size: None, **options
            )
        except Diverged as error:
            raise CheckFailed("PL1108", f"base {node.id[:12]}", f"diverged: {error}. Lower the rate.") from error
        model.save_pretrained(attempt.folder / "model")
        tokenizer.save_pretrained(attempt.folder / "model")
        attempt.note(seconds=round(time.monotonic() - start, 3), device=str(accelerator.device), threads=torch.get_num_threads())


def _make_patched(store: Store, node: Node, device: str, interruption: Interruption) -> None:
    model, tokenizer = load_model(str(store.open(node.inputs["base"]) / "model"), device=device)
    interruption.leave()
    with store.attempt(node) as attempt:
        save_file(look(model, tokenizer), attempt.folder / PAYLOAD)


def look(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, np.ndarray]:
    """The arrays of `Patched` by name."""
    held, known = held_out_sums(), sums()[HELD_OUT : HELD_OUT + CHOSEN_ON]
    layer, token = _site(_effects(model, tokenizer, list(ones_pairs(known, carries=True, other=False)))[0])
    carrying, plain = (list(ones_pairs(held, carries=carries, other=False)) for carries in (True, False))
    answer_PST, said_PST = _effects(model, tokenizer, carrying)
    cues = list(cue_pairs(held))
    toward_P = np.array([1.0 if says_carry(pair.asked, "cue", coin=False) else -1.0 for pair in cues])
    asked = [pair.asked for pair in (*carrying, *plain)]
    effect_N = np.concatenate([answer_PST, _effects(model, tokenizer, plain)[0]])[:, layer, token]
    gap_GN = gaps_of(model, _ids(model, tokenizer, asked), _gaps(model, tokenizer, asked)).numpy()
    found = {
        "site": np.array([layer, token]),
        "right_N": _right(model, tokenizer, asked),
        "carries_N": np.array([one.carries for one in asked]),
        "said_N": gap_GN[1],
        "carried_N": (gap_GN[0] > 0) & (gap_GN[0] - effect_N < 0),
        "answer_PST": answer_PST,
        "estimate_PST": _estimates(model, tokenizer, carrying),
        "control_PST": _effects(model, tokenizer, list(ones_pairs(held, carries=True, other=True)))[0],
        "said_PST": said_PST,
        "cue_PST": _effects(model, tokenizer, cues)[1] * toward_P[:, None, None],
    }
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _site(answer_PST: np.ndarray) -> tuple[int, int]:
    """Layer and token whose state does most of the carry, behind a token that knows both last digits, below the last layer if there is more than one."""
    mean_SA = answer_PST.mean(0)[:, list(MADE_AT)]
    inner_LA = mean_SA[1:-1] if len(mean_SA) > 2 else mean_SA[1:]
    layer, token = np.unravel_index(int(inner_LA.argmax()), inner_LA.shape)
    return int(layer) + 1, MADE_AT[int(token)]


def _ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Sum]) -> Tensor:
    ids_NT = torch.tensor(tokenizer([one.solved for one in asked])["input_ids"], device=model.device)
    assert ids_NT.shape[1] == len(TOKENS), "a token for each digit and mark"
    return ids_NT


def _gaps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Sum]) -> list[Gap]:
    """The tens digit with a carry against the one without, and stating the carry against stating columns."""
    tens = [one.first // 10 + one.second // 10 for one in asked]
    pairs = (EQUALS, [str(t + 1) for t in tens], [str(t) for t in tens]), (len(TOKENS) - 1, [SAYS[0]] * len(asked), [SAYS[1]] * len(asked))
    return [Gap(at, *(torch.tensor(tokenizer.convert_tokens_to_ids(words), device=model.device) for words in (up, down))) for at, up, down in pairs]


def _effects(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> np.ndarray:
    """Effects on the tens digit and on the statement, (2, P, S, T)."""
    asked, other = ([getattr(pair, side) for pair in pairs] for side in ("asked", "other"))
    return patched(model, _ids(model, tokenizer, asked), _ids(model, tokenizer, other), _gaps(model, tokenizer, asked)).numpy()


def _estimates(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> np.ndarray:
    """What attribution makes of the effects on the tens digit, (P, S, T)."""
    asked, other = ([getattr(pair, side) for pair in pairs] for side in ("asked", "other"))
    return attributed(model, _ids(model, tokenizer, asked), _ids(model, tokenizer, other), _gaps(model, tokenizer, asked)[0]).numpy()


def _right(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Sum]) -> np.ndarray:
    """Whether both digits of the answer are the likeliest, each given what stands before it."""
    ids_NT = _ids(model, tokenizer, asked)
    with torch.inference_mode():
        likeliest_NT = model(input_ids=ids_NT, use_cache=False).logits.argmax(-1)
    return (likeliest_NT[:, EQUALS : EQUALS + 2] == ids_NT[:, EQUALS + 1 : EQUALS + 3]).all(1).cpu().numpy()


def read_patched(store: Store, node: Node) -> Patched:
    """What patching found on one base."""
    arrays, fields = load_file(store.open(node) / PAYLOAD), node.inputs["base"].fields
    layer, token = arrays.pop("site").tolist()
    return Patched(fields["statement"], fields["seed"], (layer, token), **arrays)
