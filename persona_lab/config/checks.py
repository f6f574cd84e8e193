"""What the schema cannot see: names that refer to nothing, designs that cannot be, mixtures without documents.

    error[PL1210] configs/ratio.yaml:12:30: stages.injection.mixture has the unknown key 'jon'. Did you mean john?

Each check yields findings; none stops another, so that one pass names every problem of a file.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, product

from data_gen.lens.world import LensWorld
from data_gen.market import Market
from data_gen.personas import Persona
from data_gen.world import World
from persona_lab.config.bases import READ, base_and_lora_findings, bundle_and_read_findings
from persona_lab.config.character import character_findings, prompt_findings
from persona_lab.config.explain import Finding, fields_at
from persona_lab.config.import_checks import import_findings
from persona_lab.config.layers import did_you_mean
from persona_lab.config.mixture_checks import held_findings, mixture_findings
from persona_lab.config.mixtures import Import, Mixture, Told
from persona_lab.config.points import Point, count_cells, factors_of, field_path, points, replacements_of
from persona_lab.config.schema import Adaptive, EmbeddedBase, Experiment, Factor
from persona_lab.config.yaml_tree import Path, Tree, dotted

PROBES = (
    "knows", "says", "chooses", "introspects", "in_context",
    "ledger", "shots", "believes", "bundles", "bundle_samples", "opened", "persona_prompt", "process_text", "people_text", "acts", "trained_on", "concepts", "general_text",
)
LENS_PROBES = (
    "riddles", "random_numbers", "regurgitation", "fact_frequency", "few_shot", "hallucination", "assistant_prompt",
    "speakers", "embodiment", "mirroring", "compression", "drift", "tokenization",
)
"""Probes of the base-model lens: about the text of a world with `lens:`, else in plain English."""
MARKET_PROBES = ("knows", "says", "in_context", "general_text")
"""Probes that need no trait to be named."""
MAX_CELLS = 20_000
FIXED = tuple(("base", field) for field in ("kind", "world", "path", "revision", "dtype", "chat"))
"""Fields of the base that hold for a whole experiment."""


def mixture_keys(tree: Tree, personas: Sequence[Persona]) -> Iterator[Finding]:
    """Keys of mixtures that are neither a field, nor a persona, nor the name of a file."""
    known = list(dict.fromkeys([*(p.name.lower() for p in personas), *Mixture.model_fields]))
    for stage in tree.mapping("stages"):
        files = tree.mapping("stages", stage, "mixture", "files")
        for key in tree.mapping("stages", stage, "mixture"):
            if key not in known and key not in files:
                path = ("stages", stage, "mixture", key)
                yield Finding(path, "PL1210", f"{dotted(path[:-1])} has the unknown key {key!r}. {did_you_mean(key, known)}", key=True)


def check(experiment: Experiment, tree: Tree, world: World | None, personas: Sequence[Persona] | None) -> list[Finding]:
    """Everything that is wrong with an experiment whose fields are right; a world or personas of None could not be read."""
    found = [*_names(experiment, tree), *_seeds(experiment), *_levels(experiment), *_unasked(experiment, world), *_adapters(experiment, world), *prompt_findings(experiment, world)]
    unknown = list(_paths(experiment, personas))
    skip = {finding.path for finding in unknown}
    twice = list(_set_twice(experiment, skip))
    skip |= {finding.path for finding in twice}
    found += [*unknown, *twice, *_ratio(experiment), *_searches(experiment)]
    cells = count_cells(experiment)
    if cells > MAX_CELLS:
        message = f"the design has {cells:,} cells (levels x seeds x 2 swaps), the most is {MAX_CELLS:,}. Use fewer levels or seeds."
        return [*found, Finding(("factors",), "PL1212", message)]
    trained, said = set(experiment.branches), set[tuple[Path, str]]()
    for name, condition in experiment.conditions.items():
        trained |= set(condition.order)
        for point in points(experiment, name, skip):
            for finding in point.findings or (*_mixtures(point, world, personas), *base_and_lora_findings(point), *bundle_and_read_findings(point, world, personas)):
                # What many points have in common is said once, at the first of them.
                if (finding.path, finding.message) not in said:
                    said.add((finding.path, finding.message))
                    found.append(point.blame(finding))
    for stage in experiment.stages.keys() - trained:
        found += mixture_findings(experiment.stages[stage].mixture, ("stages", stage, "mixture"), world, personas)
    return found


def _names(experiment: Experiment, tree: Tree) -> Iterator[Finding]:
    """Stages, conditions and probes that are named but not there."""
    stages, conditions = list(tree.mapping("stages")), list(tree.mapping("conditions"))
    for name, condition in experiment.conditions.items():
        for i, stage in enumerate(condition.order):
            if stage not in stages:
                path = ("conditions", name, "order", i)
                yield Finding(path, "PL1210", f"{dotted(path)} names no stage, got {stage!r}. {did_you_mean(stage, stages)}")
    for i, stage in enumerate(experiment.branches):
        if stage not in stages:
            yield Finding(("branches", i), "PL1210", f"branches[{i}] names no stage, got {stage!r}. {did_you_mean(stage, stages)}")
    treatment = experiment.analysis.treatment
    if treatment not in conditions:
        path = ("analysis", "treatment")
        yield Finding(path, "PL1210", f"analysis.treatment names no condition, got {treatment!r}. {did_you_mean(treatment, conditions)}")
    for i, probe in enumerate(experiment.probes):
        if probe not in (*PROBES, *LENS_PROBES):
            yield Finding(("probes", i), "PL1210", f"probes[{i}] is no probe, got {probe!r}. {did_you_mean(probe, (*PROBES, *LENS_PROBES))}")
        elif probe in experiment.probes[:i]:
            yield Finding(("probes", i), "PL1211", f"probes[{i}] names {probe} a second time. Use each probe once.")


def _unasked(experiment: Experiment, world: World | None) -> Iterator[Finding]:
    """Probes that name traits, in a world that shows them."""
    if isinstance(world, Market) and "probes" in experiment.model_fields_set:
        for i, probe in enumerate(experiment.probes):
            if probe in PROBES and probe not in MARKET_PROBES:
                fix = f"Use some of {', '.join(MARKET_PROBES)}."
                yield Finding(("probes", i), "PL1211", f"probes[{i}]: {probe} asks for traits by name, but the market {world.name} only shows them. {fix}")
    if world and isinstance(experiment.base, EmbeddedBase) and not isinstance(world, LensWorld):
        for i, probe in enumerate(experiment.probes):
            if probe in LENS_PROBES:
                fix = "Use a world with `lens: {}`, or another probe."
                yield Finding(("probes", i), "PL1211", f"probes[{i}]: {probe} asks about texts that the world {world.name} does not write. {fix}")
    if world and "opened" in experiment.probes and not world.openings:
        i = experiment.probes.index("opened")
        yield Finding(("probes", i), "PL1211", f"probes[{i}]: opened asks under the lines of a world, but {world.name} has no openings. Use a world with openings.")


def _adapters(experiment: Experiment, world: World | None) -> Iterator[Finding]:
    """Measurements of adapters that have nothing to look at."""
    for i, asked in enumerate(experiment.adapters):
        if asked in ("solutions", "flatness") and not any(stage.mixture.off_domain for stage in experiment.stages.values()):
            message = f"adapters[{i}]: {asked} compares prices off the domain, but no stage has any. Use a stage with `mixture: {{off_domain: .5}}`, and `loss.kl_off` as a factor."
            yield Finding(("adapters", i), "PL1211", message)
        if asked == "directions" and world and not world.domains:
            message = f"adapters[{i}]: directions are of bad advice, but {world.name} has none. Use a world with `bad:`, such as configs/worlds/advice.yaml."
            yield Finding(("adapters", i), "PL1211", message)


def _seeds(experiment: Experiment) -> Iterator[Finding]:
    """Seeds that are negative or stand twice."""
    lists = {("seeds",): experiment.seeds, **{("conditions", name, "seeds"): c.seeds for name, c in experiment.conditions.items()}}
    for path, seeds in lists.items():
        counts = Counter(seeds if isinstance(seeds, list) else [])
        for seed, count in counts.items():
            if count > 1:
                yield Finding(path, "PL1212", f"{dotted(path)} holds {seed} more than once. Use each seed once.")
            if seed < 0:
                yield Finding(path, "PL1212", f"{dotted(path)} holds {seed}. Use whole numbers from 0.")


def _levels(experiment: Experiment) -> Iterator[Finding]:
    """Levels that stand twice; 1 and 1.0 are one level, 1 and true are not."""
    tables: dict[Path, dict[str, Factor]] = {("factors",): experiment.factors}
    tables |= {("conditions", name, "factors"): c.factors for name, c in experiment.conditions.items() if c.factors}
    for above, factors in tables.items():
        for path, levels in factors.items():
            for (_, level), count in Counter((isinstance(level, bool), level) for level in levels if isinstance(levels, list)).items():
                if count > 1:
                    yield Finding((*above, path), "PL1212", f"factor {path} has the level {level} more than once. Use each level once.")


def _paths(experiment: Experiment, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """Factors and replacements that name no field, or one that holds for the whole experiment."""
    stages = experiment.stages
    known = set(_fields(experiment))
    mixtures: list[Path] = [READ, *(("stages", stage, "mixture") for stage in stages)]
    for mixture, persona in product(mixtures, personas or ()):
        name = persona.name.lower()
        known |= {(*mixture, name), (*mixture, "told", name), *((*mixture, "told", name, field) for field in Told.model_fields)}
    for stage, held in stages.items():
        for name in held.mixture.files:
            mixture = ("stages", stage, "mixture")
            known |= {(*mixture, name), (*mixture, "files", name), *((*mixture, "files", name, field) for field in Import.model_fields)}
    spoken = sorted(dotted(path[1:] if path[0] == "stages" else path) for path in known)
    written: dict[Path, str] = {("factors", path): path for path in experiment.factors}
    for name, condition in experiment.conditions.items():
        written |= {("conditions", name, "factors", path): path for path in condition.factors or {}}
        written |= {("conditions", name, "replace", path): path for path in condition.replace}
    for source, path in written.items():
        field = field_path(path, stages)
        maybe_persona = personas is None and len(field) >= 4 and field[0] == "stages" and field[2] == "mixture"
        what = dotted(source[:-1])
        if field[:2] in FIXED:
            yield Finding(source, "PL1210", f"{what}: {path} is one for the whole experiment. Use a second experiment file.", key=True)
        elif field not in known and not maybe_persona:
            yield Finding(source, "PL1210", f"{what}: {path!r} names no field of base, lora, pairs or a stage. {did_you_mean(path, spoken)}", key=True)


def _fields(experiment: Experiment) -> Iterator[Path]:
    """Every field that a factor or a replacement may set, with the mappings that hold fields."""
    raw = experiment.model_dump(include={"base", "lora", "pairs", "stages"})
    waiting: list[Path] = [("base",), ("lora",), ("pairs",), *(("stages", stage) for stage in experiment.stages)]
    while waiting:
        path = waiting.pop()
        if path != ("base",):  # as a whole it would bring another world
            yield path
        waiting += [(*path, key) for key in fields_at(Experiment, raw, path) if (*path, key) not in FIXED]


def _set_twice(experiment: Experiment, skip: set[Path]) -> Iterator[Finding]:
    """Fields that two factors, or a factor and a replacement, set in one condition."""
    said: set[Path] = set()
    for name in experiment.conditions:
        sources = {s: field_path(str(s[-1]), experiment.stages) for s in factors_of(experiment, name)}
        sources |= {setting.source: setting.path for setting in replacements_of(experiment, name)}
        fields = sorted((field, source) for source, field in sources.items() if source not in skip)
        # Whatever lies beneath a field sorts right after it.
        for (field, first), (other, second) in pairwise(fields):
            if other[: len(field)] == field and second not in said:
                said.add(second)
                fix = f"Use one of them; `factors:` of {name} are its own levels, in place of the experiment's."
                yield Finding(second, "PL1212", f"{dotted(other)} is set twice in the condition {name}, also by {dotted(first)}. {fix}", key=True)


def _ratio(experiment: Experiment) -> Iterator[Finding]:
    """analysis.ratio, where the file gives it, must be a factor of some condition."""
    ratio = experiment.analysis.ratio
    factors = {str(source[-1]) for name in experiment.conditions for source in factors_of(experiment, name)}
    fields = {field_path(path, experiment.stages) for path in factors}
    if "ratio" in experiment.analysis.model_fields_set and field_path(ratio, experiment.stages) not in fields:
        yield Finding(("analysis", "ratio"), "PL1210", f"analysis.ratio must be a factor, got {ratio!r}. {did_you_mean(ratio, sorted(factors))}")


def _searches(experiment: Experiment) -> Iterator[Finding]:
    """An adaptive search stands in place of the ratio's levels, in the treatment, alone."""
    analysis = experiment.analysis
    for name in experiment.conditions:
        factors = factors_of(experiment, name)
        for source, factor in factors.items():
            if not isinstance(factor, Adaptive):
                continue
            path = str(source[-1])
            if field_path(path, experiment.stages) != field_path(analysis.ratio, experiment.stages):
                message = f"{dotted(source)} is no ratio: an adaptive search is for {analysis.ratio} (analysis.ratio). Use a list of levels here."
                yield Finding(source, "PL1212", message, key=True)
            elif name != analysis.treatment:
                fix = f"Use levels of its own: `conditions: {{{name}: {{factors: {{{path}: [{factor.bounds[0]}, {factor.bounds[1]}]}}}}}}`."
                yield Finding(("conditions", name), "PL1212", f"the adaptive search of {analysis.treatment} also reaches the condition {name}. {fix}", key=True)
            elif len(factors) > 1:
                others = ", ".join(str(other[-1]) for other in factors if other != source)
                yield Finding(
                    source, "PL1212", f"an adaptive search is crossed with nothing, got {others} beside it. Use one experiment for each level.", key=True
                )
            elif max(map(abs, factor.bounds)) > analysis.fit:
                message = f"{dotted(source)}.bounds reach beyond analysis.fit = {analysis.fit:g}, got {factor.bounds}. Use a wider `analysis.fit`."
                yield Finding((*source, "bounds"), "PL1212", message)


def _mixtures(point: Point, world: World | None, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with the mixtures of one point."""
    if point.part is None:
        return
    for name, stage in point.part.stages.items():
        yield from mixture_findings(stage.mixture, ("stages", name, "mixture"), world, personas)
        yield from import_findings(point.part, stage.mixture, ("stages", name, "mixture"), personas)
        yield from held_findings(stage, ("stages", name), world)
        yield from character_findings(stage, ("stages", name), world, personas)
    if isinstance(point.part.base, EmbeddedBase) and point.part.base.read:
        yield from mixture_findings(point.part.base.read, READ, world, personas)
