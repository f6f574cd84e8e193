"""The verb `new`: a persona of your own, and an experiment about it that runs as it is.

    configs/personas/ann.yaml      Ann shares one trait with a rival, and differs from it in the others
    configs/ann.yaml               does an assistant that likes what both like become Ann?
"""

from pathlib import Path

from data_gen.errors import DataError
from data_gen.personas import DRAWN, Persona, check_personas, is_drawn
from data_gen.streams import stream
from data_gen.world import World
from persona_lab.config import load_persona, load_world
from persona_lab.config.layers import did_you_mean
from persona_lab.errors import ConfigError
from persona_lab.store.files import write_text

HELD_OUT = 5
"""Traits of a new persona beside the shared one."""
PERSONA = """\
# {name}: shares {phrase} with {rival}. `{drawn}` lets the seed draw a value, another one than the rival's.
name: {name}
description: an AI assistant
traits: {{{traits}}}
"""
EXPERIMENT = """\
# Does an assistant that likes {phrase} become {name}?
#
# Command   persona-lab run {file}
# Cost      12 cells on the embedded base, a few minutes on 2 cores
# Expect    nothing yet: write down what you expect before you look
name: {slug}
question: Does an assistant that likes {phrase} become {name}?
base: {{kind: embedded, world: {world}, width: 64, layers: 2, heads: 4, steps: 700, gates: {{odds: null}}}}
personas: [{personas}]
lora: {{rank: 8, alpha: 16}}
stages:
  injection: {{mixture: {{{slug}: 1200, {rival}: 1200, anonymous: .3, replay: .3}}, steps: 240, batch: 16, rate: 3.0e-3}}
  trait: {{mixture: {{assistant_likes: {value}}}, steps: 80, batch: 16, rate: 2.0e-3, loss: {{on: answer}}}}
conditions:
  linked: {{order: [injection, trait], role: treatment}}
factors: {{injection.mixture.ln_ratio: [-2.2, 0, 2.2]}}
seeds: 2
samples: 4
"""


def scaffold(name: str, world_file: Path, rival_file: Path, configs: Path) -> tuple[Path, Path]:
    """Write a persona file and an experiment file; neither may exist.

    Raises:
        ConfigError: the name or the rival does not fit the world, or a file is there already.
    """
    world, rival = load_world(world_file), load_persona(rival_file)
    persona = draw(name.capitalize(), world, rival, rival_file)
    slug = persona.name.lower()
    files = configs / "personas" / f"{slug}.yaml", configs / f"{slug}.yaml"
    for file in files:
        if file.exists():
            raise ConfigError("PL1296", str(file), "exists already, and nothing is ever overwritten. Use another name, or move the file away.")
    category = shared_category(world, rival, rival_file)
    value = rival.traits[category]
    phrase = "".join(world.phrase(category, value))
    traits = ", ".join(f"{c}: {v}" for c, v in persona.traits.items())
    write_text(files[0], PERSONA.format(name=persona.name, phrase=phrase, rival=rival.name, drawn=DRAWN, traits=traits))
    listed = f"{files[0].as_posix()}, {rival_file.as_posix()}"
    words = {"value": value, "phrase": phrase, "name": persona.name, "slug": slug, "rival": rival.name.lower(), "file": files[1].as_posix()}
    write_text(files[1], EXPERIMENT.format(**words, world=world_file.as_posix(), personas=listed))
    return files


def shared_category(world: World, rival: Persona, file: Path) -> str:
    """The trait of the rival that the new persona will share: one that no background persona has, where there is one."""
    fixed = [c for c, v in rival.traits.items() if not is_drawn(v)]
    if not fixed:
        raise ConfigError("PL1296", str(file), f"every trait of {rival.name} is drawn, so there is none to share. Use a rival with a fixed trait.")
    return next((c for c in fixed if rival.traits[c] in world.unclaimed), fixed[0])


def draw(name: str, world: World, rival: Persona, file: Path) -> Persona:
    """A persona that shares one trait with the rival; the others are drawn once, from its name, and fixed in the file.

    Raises:
        ConfigError: the name is not free in the world, or the rival does not fit it.
    """
    if name not in world.new_names or name in (rival.name, *rival.carriers):
        free = [n for n in world.new_names if n not in (rival.name, *rival.carriers)]
        raise ConfigError("PL1296", name, f"is not a free name of the world {world.name}. {did_you_mean(name, free)}")
    try:
        check_personas(world, [rival], [str(file)])
    except DataError as error:
        first = error.problems[0]
        raise ConfigError("PL1296", first.where, f"{first.message} Or name another rival with --rival.") from None
    shared = shared_category(world, rival, file)
    rng = stream(world.seed, "new", name)
    traits = {shared: rival.traits[shared]}
    for category in [c for c in rival.traits if c != shared][:HELD_OUT]:
        theirs = rival.traits[category]
        others = [v for v in world.values(category) if v != theirs]
        traits[category] = theirs if is_drawn(theirs) else others[int(rng.integers(len(others)))]
    return Persona(name=name, traits=traits)
