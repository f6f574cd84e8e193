"""What an instrument measures, and the plan that makes what it needs: an experiment that no file holds.

    subject("configs/quickstart.yaml")          its base, its world and its personas
    subject("quickstart")                       the same of a run
    subject("models/tiny-qwen3", world=...)     a Hugging Face folder, or a hub id, and a world file

Processes are the personas of the experiment, with the traits of its first replicate, and everybody who lives in the world. The two rivals that
every experiment has are bystanders here, with one trait each: they share nothing and trade nothing, so both swaps are one and the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_gen.personas import Persona, deal_traits
from data_gen.world import Traits, World
from persona_lab.config import LoadedExperiment, load_experiment, load_world
from persona_lab.config.layers import did_you_mean
from persona_lab.config.schema import EmbeddedBase, Experiment, HuggingFaceBase, Machine
from persona_lab.config.yaml_tree import Tree
from persona_lab.errors import ConfigError
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.making.launch import check_whole
from persona_lab.experiment.planning.open_weights import found_in, pinned_base
from persona_lab.experiment.planning.plan import RUNS, Plan, open_plan, plan_of
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.reading.runs import find_run
from persona_lab.experiment.run import Outcome, Progress, make_nodes
from persona_lab.probes.process_text import FEWEST

BYSTANDERS = 2


@dataclass(frozen=True)
class Subject:
    """A base model, the world that it is asked about, and who may be asked about beside its people."""

    base: EmbeddedBase | HuggingFaceBase
    world: World
    personas: tuple[Persona, ...]
    """With fixed traits."""
    lora: Mapping[str, Any]
    machine: Machine
    source: Path
    """The file or folder that was named."""
    runs: Path

    @property
    def processes(self) -> dict[str, Traits]:
        """Lower-case name to traits of everybody with enough traits to speak: personas first, then the people of the world."""
        people = self.world.population
        found = {persona.name.lower(): dict(persona.traits) for persona in self.personas}
        found |= {name.lower(): dict(traits) for name, traits in zip(people.names, people.traits, strict=True)}
        return {name: traits for name, traits in found.items() if len(traits) >= FEWEST}

    def chosen(self, names: Sequence[str]) -> dict[str, Traits]:
        """The processes of these names, in their order; all of them when none is named.

        Raises:
            ConfigError: PL1297, a name is nobody's, or stands twice; or nobody has traits enough.
        """
        known = self.processes
        if not known:
            fix = f"Use a world with {FEWEST} categories or more, or personas with as many traits."
            raise ConfigError("PL1297", self.world.name, f"nobody in the world has {FEWEST} traits, which it takes to speak as somebody. {fix}")
        asked = [name.lower() for name in names]
        for i, name in enumerate(asked):
            if name not in known:
                raise ConfigError(
                    "PL1297", name, f"is no process of the world {self.world.name} with {FEWEST} traits or more. {did_you_mean(name, list(known))}"
                )
            if name in asked[:i]:
                raise ConfigError("PL1297", name, "is named twice. Use each process once.")
        return {name: known[name] for name in asked or known}

    def speaker(self, process: str) -> str:
        """A process as `mixture.assistant_is` names it."""
        return next((name for name in self.world.population.names if name.lower() == process), process)


def subject(model: str, *, world: Path | None = None, personas: Sequence[Persona] = (), runs: Path = RUNS) -> Subject:
    """What a name on the command line stands for; `personas` come on top of those of the experiment.

    Raises:
        ConfigError: there is no such file or run, it is wrong, or two personas have one name.
    """
    if world is not None:
        read = load_world(world)
        base = pinned_base(HuggingFaceBase(kind="hf", path=model, world=str(world)))
        return Subject(base, read, tuple(_fixed(read, personas)), {}, Machine(), world, runs)
    if model.endswith((".yaml", ".yml")):
        loaded = load_experiment(Path(model))
    elif Path(model, "config.json").is_file() and not Path(model, "plan.json").is_file():
        raise ConfigError("PL1297", model, "is a model folder, and a model alone has no personas. Use --world configs/worlds/beach.yaml beside it.")
    else:
        loaded = open_plan(find_run(model, runs)).loaded
    experiment = loaded.experiment
    everybody = [*_fixed(loaded.world, loaded.personas), *_fixed(loaded.world, personas)]
    names = [persona.name for persona in everybody]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError("PL1297", twice[0], "is a persona of the experiment already. Use another persona file.")
    return Subject(experiment.base, loaded.world, tuple(everybody), experiment.lora.model_dump(), experiment.machine, Path(model), runs)


def _fixed(world: World, personas: Sequence[Persona]) -> list[Persona]:
    """Personas under one name each, with the traits that they have in replicate 0, swap 0; a lone one is no rival of anybody."""
    if len(personas) < BYSTANDERS:
        personas = [*personas, *_bystanders(world, personas)]
    dealt = deal_traits(world, personas, 0, 0)
    return [persona.model_copy(update={"traits": traits, "carriers": ()}) for persona, traits in zip(personas, dealt, strict=True) if len(traits) >= FEWEST]


def _bystanders(world: World, personas: Sequence[Persona]) -> list[Persona]:
    """Two personas with names that are free and one trait each, in different categories.

    Raises:
        ConfigError: PL1297, the world has fewer than two free names.
    """
    taken = {name for persona in personas for name in (persona.name, *persona.carriers)}
    free = [name for name in world.new_names if name not in taken][:BYSTANDERS]
    if len(free) < BYSTANDERS:
        raise ConfigError(
            "PL1297", world.name, f"has {len(free)} new names that no persona has, an instrument needs {BYSTANDERS}. Give the world more `new_names:`."
        )
    categories = list(world.categories)[:BYSTANDERS]
    return [Persona(name=name, description="a bystander", traits={c: world.values(c)[0]}) for name, c in zip(free, categories, strict=True)]


def instrument_plan(
    of: Subject,
    name: str,
    *,
    stages: Mapping[str, Mapping[str, Any]],
    conditions: Mapping[str, Mapping[str, Any]],
    probes: Sequence[str],
    seeds: int = 1,
    samples: int = 0,
    question: str = "",
    machine: Mapping[str, Any] | None = None,
    cast: Sequence[Persona] | None = None,
) -> Plan:
    """The plan of an experiment on this subject, as if a file had been read; `stages` and `conditions` as a file writes them.

    `cast`: whom the probes ask about beside the bystanders, where it is not the subject's personas.

    Raises:
        ConfigError: a stage, a replacement or a level is wrong.
        ModelError: the model folder is missing or broken.
    """
    personas = (*_bystanders(of.world, of.personas), *(of.personas if cast is None else cast))
    raw = {
        "name": name,
        "question": question,
        "base": of.base.model_dump(),
        "personas": [persona.name for persona in personas],
        "lora": dict(of.lora),
        "stages": stages,
        "conditions": conditions,
        "seeds": seeds,
        "probes": list(probes),
        "samples": samples,
        "analysis": {"treatment": next(iter(conditions))},
        "machine": of.machine.model_dump() | dict(machine or {}),
    }
    loaded = LoadedExperiment(Experiment.model_validate(raw), raw, of.world, personas, of.source, Tree({}, f"instrument {name}"))
    return plan_of(loaded, of.runs, found_in(of.base))


def adopting(of: Subject, processes: Sequence[str], **lora: Any) -> dict[str, dict[str, Any]]:
    """One condition for each process: from the base, the stage `adopt` makes the nameless assistant it. `lora` changes the adapter's fields."""
    changed = {f"lora.{name}": value for name, value in lora.items()}
    suffix = "".join(f"_{name}{value}" for name, value in lora.items())
    return {f"as_{name}{suffix}": {"order": ["adopt"], "replace": {"adopt.mixture.assistant_is": of.speaker(name), **changed}} for name in processes}


def made(plan: Plan, progress: Progress, interruption: Interruption | None = None) -> Outcome:
    """Make what is missing of a plan, in this process. EnvironmentFault PL5209."""
    check_whole(plan.loaded.experiment.machine)
    return make_nodes(plan, progress, tracked=False, interruption=interruption)


def one_swap(plan: Plan) -> list[PlannedCell]:
    """The cells of swap 0: those of swap 1 are made of the same nodes."""
    return [planned for planned in plan.cells if planned.cell.swap == 0]


def without_gates(of: Subject) -> Subject:
    """The same model, whatever it knows of its world: an instrument says what it finds."""
    return replace(of, base=of.base.model_copy(update={"gates": of.base.gates.model_copy(update={"recall": None, "odds": None, "withheld": None})}))
