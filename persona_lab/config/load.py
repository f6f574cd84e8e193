"""Loads experiment, world and persona files; whatever is wrong with them is reported at once, before anything is made.

    error[PL1203] configs/ratio.yaml:14:9: stages.injection.rate must be a number > 0 and < 1, got -0.003. Use for instance `rate: 3.0e-3`.

Codes: PL1200 cannot be read; 1201 not YAML text; 1202 refused constructs; 1203 wrong value; 1204 unknown key; 1205 missing key;
1206 key twice; 1207 extends; 1208 command line; 1209 secret; 1210 names nothing; 1211 mixtures and probes; 1212 design; 1213 world and personas.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from data_gen.errors import DataError
from data_gen.personas import Persona, check_personas
from data_gen.telling import kind_of
from data_gen.world import World
from persona_lab.config.checks import check, mixture_keys
from persona_lab.config.explain import problems_of, validate
from persona_lab.config.layers import place, read_layers, read_tree
from persona_lab.config.mixtures import Mixture
from persona_lab.config.schema import Experiment
from persona_lab.config.yaml_tree import Tree
from persona_lab.errors import ConfigError, Problem

Model = TypeVar("Model", bound=BaseModel)
POSITION = re.compile(r"(.*):(\d+):(\d+)")


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment file with everything that it names."""

    experiment: Experiment
    raw: dict[str, Any]
    """What the files and the command line say, before defaults."""
    world: World
    personas: tuple[Persona, ...]
    file: File
    tree: Tree = field(repr=False)
    """`raw` with positions, for errors that later steps find."""


def load_experiment(path: str | File, overrides: Sequence[str] = ()) -> LoadedExperiment:
    """The experiment of a file, over what it extends, under the command line's `key.path=value`.

    Paths in a file are taken from the current folder; what is not there is looked for beside the `configs` folder that
    holds the experiment file. `base=FOLDER_OR_HUB_ID` is short for `base.kind=hf base.path=...`.

    Raises:
        ConfigError: every problem of the files and of the command line, each with its position.
    """
    file, problems = File(path), list[Problem]()
    try:
        tree = read_layers(file, overrides, problems)
    except ConfigError as error:
        raise ConfigError.of(_in_order([*problems, *error.problems])) from None
    raw = tree.plain()
    world, personas = _world_and_personas(tree, file, problems)
    experiment, wrong = validate(Experiment, raw, tree)
    unknown = list(mixture_keys(tree, personas)) if personas is not None else []
    told = {finding.path for finding in unknown}
    findings = [*unknown, *wrong]
    if experiment:
        findings += (finding for finding in check(experiment, tree, world, personas) if finding.path not in told)
    problems += problems_of(tree, findings)
    if problems or experiment is None or world is None or personas is None:
        raise ConfigError.of(_in_order(problems))
    return LoadedExperiment(experiment, raw, world, tuple(personas), file, tree)


def load_world(path: str | File) -> World:
    """The world of a file.

    Raises:
        ConfigError: every problem of the file, each with its position.
    """
    return _load(World, File(path))


def load_persona(path: str | File) -> Persona:
    """The persona of a file; whether it fits a world is checked with the experiment.

    Raises:
        ConfigError: every problem of the file, each with its position.
    """
    return _load(Persona, File(path))


def _load(model: type[Model], file: File) -> Model:
    problems: list[Problem] = []
    loaded = _read(model, file, "", problems)
    if problems or loaded is None:
        raise ConfigError.of(_in_order(problems))
    return loaded[0]


def _read(model: type[Model], file: File, at: str, problems: list[Problem]) -> tuple[Model, Tree] | None:
    """A world or persona with its tree; None when `problems` says why not."""
    before = len(problems)
    try:
        tree = read_tree(file, problems, at)
    except ConfigError as error:
        problems += error.problems
        return None
    raw = tree.plain()
    schema = cast(type[Model], kind_of(raw)) if issubclass(model, World) else model
    loaded, findings = validate(schema, raw, tree)
    problems += problems_of(tree, findings)
    return (loaded, tree) if loaded and len(problems) == before else None


def _world_and_personas(tree: Tree, file: File, problems: list[Problem]) -> tuple[World | None, list[Persona] | None]:
    """The world and the personas that a tree names, checked against each other; None for what cannot be read."""
    node, listed = tree.get("base", "world"), tree.get("personas")
    world = None
    if node and isinstance(node.value, str) and not node.reported and (found := _read(World, locate(node.value, file), node.at, problems)):
        world = found[0]
    people: dict[int, tuple[Persona, Tree]] = {}
    nodes = listed.value if listed and isinstance(listed.value, list) else []
    for i, item in enumerate(nodes):
        if isinstance(item.value, str) and not item.reported and (read := _read(Persona, locate(item.value, file), item.at, problems)):
            people[i] = read
    if len(people) < max(len(nodes), 2):
        return world, None
    personas = [persona for persona, _ in people.values()]
    for persona, persona_tree in people.values():
        if persona.name.lower() in Mixture.model_fields:
            message = f"name {persona.name!r} is a field of mixtures. Use another name."
            problems.append(Problem("PL1213", place(persona_tree, ("name",)), message))
    if world:
        problems += _misfits(world, list(people.values()))
    return world, personas


def _misfits(world: World, people: list[tuple[Persona, Tree]]) -> list[Problem]:
    """What `check_personas` finds, at the line of the persona file that says it."""
    files = [tree.at.rsplit(":", 2)[0] for _, tree in people]
    try:
        check_personas(world, [persona for persona, _ in people], files)
    except DataError as error:
        trees = dict(zip(files, people, strict=True))
        return [Problem("PL1213", _line_of(problem.message, *trees[problem.where]), problem.message) for problem in error.problems]
    return []


def _line_of(message: str, persona: Persona, tree: Tree) -> str:
    """The position of what a message about a persona file speaks of: `traits.place` or a name."""
    if found := re.match(r"traits\.([^:]+):", message):
        return place(tree, ("traits", found[1]))
    carrier = next((i for i, name in enumerate(persona.carriers) if repr(name) in message.partition(" is ")[0]), None)
    return place(tree, ("name",) if carrier is None else ("carriers", carrier))


def locate(path: str, near: File) -> File:
    """A path of a file: from the current folder, else from the folder whose `configs` holds the file that names it."""
    here = File(path)
    roots = [folder.parent for folder in near.absolute().parents if folder.name == "configs"]
    for candidate in (here, *(root / path for root in roots)):
        try:
            if candidate.exists():
                return candidate
        except (OSError, ValueError):
            continue  # too long, or not a path: reading it says so
    return here


def _in_order(problems: list[Problem]) -> list[Problem]:
    """The problems by file, in the order met, then by line and column."""
    files: dict[str, int] = {}

    def rank(problem: Problem) -> tuple[int, int, int]:
        found = POSITION.fullmatch(problem.where)
        file, line, column = (found[1], int(found[2]), int(found[3])) if found else (problem.where, 0, 0)
        return files.setdefault(file, len(files)), line, column

    return sorted(problems, key=rank)
