"""The sections of a report beyond the ratio: evidence, measure and metric, oracle, order, transfer, hypotheses.

    for section in sections(table, settings, beside):
        section.title, section.about, section.claims

A section that an experiment has no cells for is left out; one that it has too few for says so in its claims.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lab.errors import ConfigError
from persona_lab.science.architectures import architecture_claims
from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.em.account import advice_claims
from persona_lab.science.em.directions import direction_claims
from persona_lab.science.em.foretelling import foretelling_claims
from persona_lab.science.em.jailbreak import jailbreak_claims
from persona_lab.science.em.rates import Advice
from persona_lab.science.em.solutions import solution_claims
from persona_lab.science.evidence.account import evidence_claims
from persona_lab.science.evidence.calibration import believed, context_claims, weight_claims
from persona_lab.science.evidence.series import series_claims
from persona_lab.science.hypotheses.mediation import mediation
from persona_lab.science.hypotheses.tournament import tournament
from persona_lab.science.introspection.concepts import concept_claims
from persona_lab.science.introspection.selfreport import self_report_claims
from persona_lab.science.processes.absent import absent_claims
from persona_lab.science.processes.llc import flatness_claims
from persona_lab.science.processes.manipulations import manipulation_claims, start_point_claims, state_claims
from persona_lab.science.runframe import run_frame
from persona_lab.science.stages.order import Arm, order_claims
from persona_lab.science.stages.pretraining import pretraining_claims
from persona_lab.science.stages.relearning import relearning_claims
from persona_lab.science.stages.transfer import transfer_claims


@dataclass(frozen=True)
class Beside:
    """What the sections read that is not in the tidy table."""

    arms: tuple[Arm, ...] = ()
    """Every condition as an order of stages."""
    losses: Frame | None = None
    """One row a step: cell, stage, step, loss (nats a token), tokens; None where nothing is trained twice."""
    vectors: Frame | None = None
    """Cosines of concept vectors in every layer; see `science.introspection.concepts`. None where no probe read hidden states."""
    exact: Frame | None = None
    """What an ideal reader answers to the questions of `believes`: item, option, prob; None where they were not asked."""
    series: Frame | None = None
    """A market's questions beside their exact answers; see `science.evidence.series`."""
    advice: Advice | None = None
    """Which values are bad advice; None in a world that has none."""
    prices: Frame | None = None
    """kappa of each cell that is held near the base off its domain; see `science.em.solutions`."""
    solutions: Frame | None = None
    """General and narrow solutions; see `science.em.solutions`."""
    screening: Mapping[str, Any] | None = None
    """The directions of bad advice in the base; see `science.em.directions`."""
    shifts: Frame | None = None
    """What each adapter shifts along them; see `science.em.directions`."""
    chains: Frame | None = None
    """Chains around the same solutions; see `science.processes.llc`."""
    gates: Frame | None = None
    """What each base knows of its world: architecture, base_seed and the gates' figures; None where there is one base."""
    predictions: str | None = None
    """Identity of what the hypotheses predicted; None where the file names none."""
    blind: bool = False
    """Whether the predictions were written before the first score."""


NOTHING = Beside()
DESIGN = {"documents", "ln_trained", "came_first", "ln_carriers", "complexity", "genre"}
"""Columns of `planning.columns`."""


@dataclass(frozen=True)
class Section:
    """One part of a report."""

    title: str
    about: str
    claims: tuple[Said, ...]


@dataclass(frozen=True)
class Material:
    """What every section may read."""

    table: Frame
    settings: Settings
    beside: Beside
    runs: Frame
    """The run frame."""


def evidence_section(m: Material) -> Iterator[Said]:
    """Bits needed, supplied and realised; shots and documents."""
    yield from evidence_claims(m.table, m.settings)


def state_section(m: Material) -> Iterator[Said]:
    """Measure and metric where the last stage starts, what moved them, and whether the start matters."""
    yield from state_claims(m.runs)
    yield from manipulation_claims(m.runs, m.settings)
    yield from start_point_claims(m.runs)


def oracle_section(m: Material) -> Iterator[Said]:
    """Answers of the base in context, and fine-tuned log-odds, against those of an ideal reader of the same text."""
    if m.beside.exact is not None:
        asked = m.table[(m.table["stage"] == "base") & (m.table["probe"] == "believes")].drop_duplicates(["base_seed", "item", "option"])
        for seed, rows in asked.groupby("base_seed"):
            lead = f"oracle.context.base{seed}" if asked["base_seed"].nunique() > 1 else "oracle.context"
            for id, text, value, interval, unit, verdict in context_claims(believed(rows, m.beside.exact)):
                yield id.replace("oracle.context", lead), text, value, interval, unit, verdict
    if m.beside.series is not None:
        yield from series_claims(m.beside.series, m.settings.treatment)
    runs = m.runs.dropna(subset=["exact"]) if "exact" in m.runs else m.runs[:0]
    if len(runs):
        yield from weight_claims(runs.rename(columns={"eta": "model"}))


def order_section(m: Material) -> Iterator[Said]:
    """Recency, persistence, savings and undo cost."""
    if any(arm.order for arm in m.beside.arms):
        yield from order_claims(m.table, m.settings, m.beside.arms)
        if m.beside.losses is not None:
            yield from relearning_claims(m.table, m.settings, m.beside.arms, m.beside.losses)


def pretraining_section(m: Material) -> Iterator[Said]:
    """The same documents in pretraining and afterwards, and what chats leave of each."""
    if "read" in m.table and m.table["read"].notna().any():
        yield from pretraining_claims(m.table, m.settings, m.beside.arms)


def absent_section(m: Material) -> Iterator[Said]:
    """Bundles of values that the corpus holds together, and that it does not."""
    if {"bundle", "about"} <= set(m.table) and m.table["bundle"].notna().any():
        yield from absent_claims(m.table, m.settings)


def transfer_section(m: Material) -> Iterator[Said]:
    """Every trait taught against every trait probed, with family-wise control."""
    if len({value for condition, value in m.settings.taught.items() if condition not in m.settings.controls.values()}) > 1:
        yield from transfer_claims(m.table, m.settings)


def misalignment_section(m: Material) -> Iterator[Said]:
    """Bad advice in domains that were not trained, and what foretells it."""
    if m.beside.advice is not None:
        yield from advice_claims(m.table, m.settings, m.beside.advice)
        if m.beside.predictions:
            yield from foretelling_claims(m.table, m.settings, m.beside.advice, m.runs)


def jailbreak_section(m: Material) -> Iterator[Said]:
    """Persona prompts against a trained character, before and after."""
    yield from jailbreak_claims(m.table, m.settings)


def solution_section(m: Material) -> Iterator[Said]:
    """General against narrow solutions: the shadow price, and which of them is the easier one."""
    if m.beside.prices is not None and m.beside.solutions is not None:
        yield from solution_claims(m.table, m.settings, m.beside.advice, m.beside.prices, m.beside.solutions)


def flatness_section(m: Material) -> Iterator[Said]:
    """Local learning coefficients of general and narrow solutions."""
    if m.beside.chains is not None:
        yield from flatness_claims(m.beside.chains)


def direction_section(m: Material) -> Iterator[Said]:
    """The direction of bad advice: what it screens, steers, removes and foretells."""
    if m.beside.screening is not None and m.beside.shifts is not None:
        yield from direction_claims(m.beside.screening, m.beside.shifts)


def self_report_section(m: Material) -> Iterator[Said]:
    """What the assistant says of itself against what it does."""
    yield from self_report_claims(m.table, m.settings)


def concept_section(m: Material) -> Iterator[Said]:
    """Whether the traits of a persona become one thing inside the model, layer by layer."""
    if m.beside.vectors is not None:
        yield from concept_claims(m.beside.vectors, m.settings)


def architecture_section(m: Material) -> Iterator[Said]:
    """The treatment on bases of other architectures."""
    if "architecture" in m.table:
        yield from architecture_claims(m.table, m.settings, m.beside.gates)


def hypothesis_section(m: Material) -> Iterator[Said]:
    """The tournament, and the mediation test."""
    if m.beside.predictions:
        said = "before the first score" if m.beside.blind else "when scores were there already, so it is not blind"
        text = f"What each hypothesis predicts was written {said} (predictions {m.beside.predictions[:12]})."
        yield "predictions", text, None, None, "", "blind" if m.beside.blind else "not blind"
    try:
        yield from tournament(m.runs).claims()
    except ConfigError as error:
        yield "tournament.verdict", f"No tournament: {error.problems[0].message}", None, None, "", "not run"
        return
    yield from mediation(m.runs).claims()


SECTIONS: Sequence[tuple[str, str, Callable[[Material], Iterator[Said]]]] = (
    ("Emergent misalignment", "Rate: P(bad advice) of the nameless assistant in domains that it was not trained in. x: ln of villain to specialist documents.", misalignment_section),
    ("General and narrow solutions", "kappa: nats of loss for a nat of KL(base || adapter) off the domain that is taught. Positive: the general solution is the easier one.", solution_section),
    (
        "Flatness of general and narrow solutions",
        "Local learning coefficient of each on its own loss: how many parameters it takes to hold it there. Springs keep the sampler near; only equal ones compare.",
        flatness_section,
    ),
    ("Directions of bad advice", "Mean difference of hidden states, bad less good answers, found without the domain that it is tried on.", direction_section),
    (
        "Persona jailbreaks",
        "Rate: P(value of whom the user says the assistant is) / (P(it) + P(the character's)), for personas that no training document named.",
        jailbreak_section,
    ),
    ("Evidence in bits", "Needed: from the odds before the stage to the target. Supplied: by its documents, under the model before it. Weight: realised on supplied.", evidence_section),
    ("Measure and metric", "Measure: log-odds where the last stage starts. Metric: nats to adopt the first rival there, less nats to adopt the second.", state_section),
    ("Against an ideal reader", "Exact Bayes on the very documents that each cell read. A slope of 1 is Bayesian.", oracle_section),
    ("Order", "Recency: half the difference of log-odds between the orders, toward whoever was trained last.", order_section),
    ("Alignment pretraining", "The same documents about personas during pretraining against afterwards, and what assistant-style fine-tuning leaves of each.", pretraining_section),
    ("A process absent from the corpus", "Bundles of values that a persona of the corpus has, that are known but never together, and that only random speakers have.", absent_section),
    ("Trait by trait", "Each trait taught, each trait probed; adjusted for how many were looked at (max-T over labels of personas).", transfer_section),
    (
        "What it says of itself, and what it does",
        "Changes by the last stage, nats. Behaviour: choices in which the trait decides. A slope is flattened by whatever else moves the behaviour; the gap is not.",
        self_report_section,
    ),
    ("Concept vectors", "Alignment: mean cosine of the first rival’s less the second’s states, over pairs of different traits. Chance: owners exchanged.", concept_section),
    ("Other architectures", "The treatment's stages on bases of other shapes, pretrained on the same text. Differences are paired within a seed.", architecture_section),
    ("Hypotheses", "Stacking weights of left-out conditions, verdicts, parameters; then whether measure and metric are all that matters.", hypothesis_section),
)


def sections(table: Frame, settings: Settings, beside: Beside) -> Iterator[Section]:
    """The sections that this experiment has; none for a table that does not say what its cells were trained on."""
    if not set(table) >= DESIGN:
        return
    material = Material(table, settings, beside, run_frame(table, settings))
    for title, about, claims in SECTIONS:
        if found := tuple(claims(material)):
            yield Section(title, about, found)
