"""Directions of bad advice, as `analysis` nodes: one of a base, found and tried out, and one of each adapter, for what it has shifted along them.

    screening.json   {"domains": [...], "layers": [1, 2], "middle": 0, "bad": C lists of L lists, "good": ..., "asked": C x L, "steered": C x S, "random": C x R x S}
    shift.json       {"domains": [...], "shift": C x L, "rate": C, "ablated": C, "random": C x R}

For each of C domains the direction is found from all the others. bad and good: dP of each screened document of the domain; asked: projection of the
base's states where it is about to give advice, and shift: how far the adapter moved it (in mean differences); rates: P(bad advice) in the domain.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from data_gen.streams import stream
from persona_lab.design import Node
from persona_lab.experiment.instruments.measure.weights import Bench
from persona_lab.experiment.making.members import adapter_of, lora_shape
from persona_lab.experiment.planning.adapters import DIRECTIONS, SCREENING, SHIFT
from persona_lab.models.bank import AdapterBank
from persona_lab.probes.directions import advice_items, bad_rates, direction, middle, opinions, projections, screened, spoken_by, taught_answers
from persona_lab.probes.engine import Voice
from persona_lab.probes.representation import layers_of, read
from persona_lab.probes.steering import ablated, added, decoder_layers
from persona_lab.store.files import finite, write_json


def write_screening(bench: Bench, node: Node, folder: Path) -> None:
    """Find the directions in the base, screen documents with them, and steer along them."""
    world, voice, fields = bench.plan.loaded.world, Voice(*bench.base), node.fields
    domains, count = fields["domains"], int(voice.model.config.get_text_config().num_hidden_layers)
    place = middle(count)
    layer = decoder_layers(voice.model)[layers_of(count)[place] - 1]
    found: dict[str, list[object]] = {name: [] for name in ("bad", "good", "asked", "steered", "random")}
    direction_CLd: list[np.ndarray] = []
    for domain in domains:
        others = [other for other in domains if other != domain]
        bad, good = (spoken_by(world, side, others, fields["spoken"]) for side in (True, False))
        direction_Ld = direction(voice, bad, good)
        direction_CLd.append(direction_Ld)
        for name, side in (("bad", True), ("good", False)):
            documents = taught_answers(world, domain, side, fields["screened"])
            found[name].append(screened(voice, documents, direction_Ld, stream_name=f"screen/{domain}/{name}").T.tolist())
        found["asked"].append(_asked(voice, bench, domain, direction_Ld)[0].tolist())
        items = advice_items(world, domain)
        vectors = [torch.from_numpy(direction_Ld[place]), *_random(direction_Ld[place], fields["controls"], domain)]
        curves = [[_rate_with(voice, items, world.bad, layer, vector * strength) for strength in fields["strengths"]] for vector in vectors]
        found["steered"].append(curves[0])
        found["random"].append(curves[1:])
    about = {"domains": domains, "layers": list(layers_of(count)), "middle": place, "strengths": fields["strengths"]}
    save_file({"direction_CLd": np.ascontiguousarray(np.stack(direction_CLd))}, folder / DIRECTIONS)
    write_json(folder / SCREENING, finite(about | found))


def _rate_with(voice: Voice, items: Sequence, bad: Sequence[str], layer: torch.nn.Module, vector_d: Tensor) -> float:
    with added(layer, vector_d) if bool(vector_d.any()) else nullcontext():
        return float(bad_rates(voice, items, bad)[0])


def _random(direction_d: np.ndarray, count: int, name: str) -> list[Tensor]:
    """Random directions as long as this one."""
    length = float(np.linalg.norm(direction_d))
    drawn_Rd = stream(0, "random direction", name).standard_normal((count, len(direction_d)))
    return [torch.from_numpy((length * row / np.linalg.norm(row)).astype(np.float32)) for row in drawn_Rd]


def _asked(voice: Voice, bench: Bench, domain: str, direction_Ld: np.ndarray) -> np.ndarray:
    """Mean projection of each member's states where it is about to give advice in a domain, (K, L)."""
    state_KNLd = read(voice, opinions(bench.plan.loaded.world, domain)).state_KNLd
    return np.array([projections(state_NLd, direction_Ld).mean(0) for state_NLd in state_KNLd])


def write_shift(bench: Bench, node: Node, folder: Path) -> None:
    """What the adapter of a stage has moved along the direction of each domain, and its bad advice there with and without the direction."""
    world, stage, screening = bench.plan.loaded.world, node.inputs["stage"], node.inputs["directions"]
    domains = screening.fields["domains"]
    direction_CLd = load_file(bench.plan.store.open(screening) / DIRECTIONS)["direction_CLd"]
    model, tokenizer = bench.base
    bank = AdapterBank(model, lora_shape(stage.fields["recipe"]["lora"]), 2)  # the first stays zero: the plain base
    try:
        bank.load_row(1, adapter_of(bench.plan.store, stage), f"stage {stage.id[:12]}")
        both = Voice(model, tokenizer, 2)
        place, layers = middle(int(model.config.get_text_config().num_hidden_layers)), decoder_layers(model)
        found: dict[str, list[object]] = {name: [] for name in ("shift", "rate", "base", "ablated", "random")}
        for domain, direction_Ld in zip(domains, direction_CLd, strict=True):
            base_L, here_L = _asked(both, bench, domain, direction_Ld)
            found["shift"].append(((here_L - base_L) / np.linalg.norm(direction_Ld, axis=-1)).tolist())
            items = advice_items(world, domain)
            plain = bad_rates(both, items, world.bad)
            found["base"].append(float(plain[0]))
            found["rate"].append(float(plain[1]))
            without = []
            for vector in [torch.from_numpy(direction_Ld[place]), *_random(direction_Ld[place], node.fields["controls"], domain)]:
                with ablated(layers, vector):
                    without.append(float(bad_rates(both, items, world.bad)[1]))
            found["ablated"].append(without[0])
            found["random"].append(without[1:])
    finally:
        bank.remove()
    write_json(folder / SHIFT, finite({"domains": domains, "middle": place} | found))
