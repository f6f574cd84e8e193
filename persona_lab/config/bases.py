"""What is wrong with a base and what it reads beside its world's text, and with the bundles that a seed draws from that world.

    error[PL1211] configs/x.yaml:9:16: base.read holds 9,000 documents, but the text has room for 6,400 of them. Use fewer, or more base.steps.
"""

import os
from collections.abc import Iterator, Sequence

from data_gen.personas import Persona, held_out_categories
from data_gen.world import World
from persona_lab.config.explain import Finding
from persona_lab.config.layers import HUB_ID, did_you_mean
from persona_lab.config.mixtures import Mixture
from persona_lab.config.points import Point
from persona_lab.config.schema import Architecture, EmbeddedBase, HuggingFaceBase
from persona_lab.config.yaml_tree import Path
from persona_lab.errors import quoted

READ: Path = ("base", "read")
GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EMBEDDED_LINEARS: dict[Architecture, tuple[str, ...]] = {
    "llama": GATED,
    "qwen3": GATED,
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}
"""The matrices of a layer, by the architecture of the embedded base."""


def base_and_lora_findings(point: Point) -> Iterator[Finding]:
    """A base that is no model at all, and an adapter that does not fit the embedded one; other bases are asked when they are there."""
    if point.part is None:
        return
    base, lora = point.part.base, point.part.lora
    if isinstance(base, HuggingFaceBase):
        if not (base.path.startswith((".", "/", "~")) or HUB_ID.fullmatch(base.path) or os.path.isdir(base.path)):
            message = f"base.path is neither a folder nor a hub id, got {quoted(base.path)}. Use a model folder, or a hub id such as Qwen/Qwen3-0.6B."
            yield Finding(("base", "path"), "PL1210", message)
        return
    if lora.rank > base.width:
        message = f"lora.rank is {lora.rank}, but no matrix has a rank above base.width {base.width}. Use at most {base.width}."
        yield Finding(("lora", "rank"), "PL1211", message)
    linears = EMBEDDED_LINEARS[base.architecture]
    for target in lora.targets if isinstance(lora.targets, list) else ():
        if target not in linears:
            message = f"lora.targets names no matrix of the embedded base ({base.architecture}), got {quoted(target)}. {did_you_mean(target, linears)}"
            yield Finding(("lora", "targets"), "PL1210", message)
        elif lora.targets.count(target) > 1:
            yield Finding(("lora", "targets"), "PL1210", f"lora.targets names {target} a second time. Use each name once.")


def bundle_and_read_findings(point: Point, world: World | None, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with `base.read` and `pairs.bundle` at one point, beyond what is wrong with any mixture."""
    if point.part is None:
        return
    if isinstance(point.part.base, EmbeddedBase) and point.part.base.read is not None:
        yield from _reading(point.part.base, personas)
    bundle, prior = point.part.pairs.bundle, point.part.pairs.prior
    if bundle is not None and prior is not None:
        yield Finding(("pairs", "bundle"), "PL1211", "pairs has prior and bundle: values are drawn one by one, or together. Use one of them.")
    if bundle == "unclaimed" and world is not None and personas is not None:
        for category in held_out_categories(personas):
            if category in world.categories and len(set(world.values(category)) & set(world.unclaimed)) < 2:
                fix = f"Use a world that lists two values of {category} under `unclaimed:`."
                yield Finding(("pairs", "bundle"), "PL1211", f"pairs.bundle is unclaimed, but {category} of the world {world.name} has no two such values. {fix}")


def _reading(base: EmbeddedBase, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with the documents that a base reads."""
    read = base.read
    assert read is not None
    known = [persona.name.lower() for persona in personas or ()]
    for who in read.counts if personas is not None else ():
        if who not in known:
            fix = did_you_mean(who, [*known, *Mixture.model_fields, "after"])
            yield Finding((*READ, who), "PL1210", f"base.read has the unknown key {who!r}. {fix}", key=True)
    for field in read.by_assistant:
        yield Finding((*READ, field), "PL1211", f"base.read has {field}, but a base reads documents about personas. Use a stage for what the assistant says.")
    for field in ("files", "tag"):
        if getattr(read, field):
            yield Finding((*READ, field), "PL1211", f"base.read has {field}, but an embedded base reads text of its own world. Use {field} in stages.")
    if read.replay:
        yield Finding((*READ, "replay"), "PL1211", "base.read has replay, but the rest of a base's text is the world's own already. Use replay in stages.")
    documents, room = sum(read.counts.values()), round(base.steps * base.batch * (1 - read.after))
    if documents > room:
        message = f"base.read holds {documents:,} documents, but the text has room for {room:,} of them. Use fewer, or more base.steps."
        yield Finding(READ, "PL1211", message)
