"""What an instrument states of one model, and the files that it stands in: all of it from the store, so that `verify` can say it again.

    written(metric_findings(plan, distances(plan)))      runs/metric-1a2b3c4d/metric.json, claims.json, metric.html
    findings_of(open_plan(folder))                       the same once more, from the folder alone
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from data_gen.world import Traits
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.building import BYSTANDERS, Subject
from persona_lab.experiment.instruments.looking import INSTRUMENT as LENS
from persona_lab.experiment.instruments.looking import Look, lens_claims, lens_json, lens_parts, looks
from persona_lab.experiment.instruments.measure.estimating import Measures, measures
from persona_lab.experiment.instruments.measure.plans import Plans
from persona_lab.experiment.instruments.metric.claims import distance_claims
from persona_lab.experiment.instruments.metric.distances import Distances, as_json, distances
from persona_lab.experiment.planning.plan import Plan, open_plan
from persona_lab.experiment.reading.runs import CLAIMS
from persona_lab.experiment.reading.show import grouped, provenance
from persona_lab.report.instrument import Drawing, Part, Sheet, instrument_page
from persona_lab.report.instrument_figures import against, concept_map, heat, intervals
from persona_lab.science.claims import Claim, figure, shown
from persona_lab.science.processes.measure import TRUTH
from persona_lab.science.processes.validity import measure_claims, table_of
from persona_lab.store.files import finite, read_json, write_json, write_text

METRIC, MEASURE = "metric", "measure"
"""Instruments: the function of a claim's recipe, and the names of the files."""


@dataclass(frozen=True)
class Findings:
    """What was found, in the three forms in which it is kept."""

    instrument: str
    plans: tuple[Plan, ...]
    """The runs that it rests on; the last one's folder holds the files."""
    said: Mapping[str, Any]
    claims: tuple[Claim, ...]
    page: str

    @property
    def file(self) -> Path:
        """Everything that was found, as JSON."""
        return self.plans[-1].folder / f"{self.instrument}.json"


def written(found: Findings) -> Findings:
    """The findings, once their files stand."""
    write_json(found.file, finite(found.said))
    write_json(found.file.with_name(CLAIMS), grouped(found.claims))
    write_text(found.file.with_suffix(".html"), found.page)
    return found


def rests_on(plan: Plan) -> tuple[Plan, ...]:
    """The runs that what an instrument wrote here rests on; none for a run that is no instrument's.

    Raises:
        ConfigError: PL1293, the files of a measurement do not say which runs it rests on.
    """
    if any((plan.folder / f"{name}.json").is_file() for name in (METRIC, LENS)):
        return (plan,)
    return reopened(plan)[1].each() if (plan.folder / f"{MEASURE}.json").is_file() else ()


def findings_of(plan: Plan) -> Findings:
    """What an instrument's run states, computed once more from the store."""
    if (plan.folder / f"{METRIC}.json").is_file():
        return metric_findings(plan, distances(plan))
    if (plan.folder / f"{LENS}.json").is_file():
        return lens_findings(plan, looks(plan))
    of, plans, processes = reopened(plan)
    return measure_findings(plans, measures(of, plans, processes))


def reopened(plan: Plan) -> tuple[Subject, Plans, dict[str, Traits]]:
    """What was measured, the runs that it rests on, and the processes, from the folder that holds measure.json.

    Raises:
        ConfigError: PL1293, the file does not say which runs.
    """
    file = plan.folder / f"{MEASURE}.json"
    said = read_json(file)
    try:
        plans = Plans(**{name: open_plan(plan.runs / run) for name, run in said["runs"].items()})
        names = list(said["processes"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError("PL1293", str(file), "is not what `persona-lab measure` writes. Measure again: what is in the store is kept.") from error
    experiment, personas = plan.loaded.experiment, plan.loaded.personas[BYSTANDERS:]
    of = Subject(experiment.base, plan.loaded.world, personas, experiment.lora.model_dump(), experiment.machine, plan.loaded.file, plan.runs)
    return of, plans, of.chosen(names)


def _recipe(instrument: str, claim: str, nodes: Sequence[str]) -> dict[str, Any]:
    return {"function": instrument, "node_ids": list(nodes), "args": {"claim": claim}}


def metric_findings(plan: Plan, found: Distances) -> Findings:
    """Distances on a model, with the map of its processes."""
    claims = distance_claims(plan, found)
    lead = next(claim.text for claim in claims if claim.id == "metric.asymmetry")
    drawn = [Drawing(concept_map(found.chart), f"Processes as far apart as it takes nats to adopt one from the other; shows {found.shown:.0%} of the distances.")]
    nats = Drawing(heat(found.processes, found.nats_KK, "adopted", "from"), "Nats to adopt (D1) the column by a model that is the row, means over seeds.")
    proxies = [claim for claim in claims if claim.id.startswith("metric.proxy.")]
    others = [claim for claim in claims if claim not in proxies]
    frame = pd.DataFrame([_interval_row(claim.id.removeprefix("metric.proxy."), claim) for claim in proxies if claim.value is not None])
    foretold = [Drawing(intervals(frame, "Spearman’s rho with D1"), "How well cheaper distances foretell the nats to adopt.")] if len(frame) else []
    parts = [
        Part("The concept space", drawings=[*(drawn if len(found.chart) else []), nats]),
        Part("Is it a metric", "Zero to itself, as far there as back, and no way round that is shorter.", claims=others),
        Part("Cheaper distances", "Rank correlation with the nats to adopt, over pairs of processes.", foretold, claims=proxies),
    ]
    return Findings(METRIC, (plan,), as_json(found), tuple(claims), instrument_page("Metric", lead, parts, provenance(plan)))


def _interval_row(label: str, claim: Claim) -> dict[str, Any]:
    low, high = claim.interval or (None, None)
    return {"label": label.replace("_", " "), "value": claim.value, "low": low, "high": high}


def lens_findings(plan: Plan, found: Sequence[Look]) -> Findings:
    """What the lens found on each model, with the references beside it."""
    claims = lens_claims(found)
    lead = f"What {', '.join(look.model for look in found)} can do that nobody taught: values with 95 % intervals over items, beside what is published or exact."
    return Findings(LENS, (plan,), lens_json(found), tuple(claims), instrument_page("Base-model lens", lead, lens_parts(found), provenance(plan)))


def measure_findings(plans: Plans, found: Measures) -> Findings:
    """The measure of processes in a model, with how far its estimators agree."""
    each = plans.each()
    nodes = sorted({node.id for plan in each for node in plan.nodes if node.kind in ("stage", "scores") and plan.store.has(node)})
    claims = [Claim(*said, _recipe(MEASURE, said[0], nodes)) for said in measure_claims(found.found, found.agreement)]
    table = table_of(found.found)
    whole = table.reset_index()
    drawn = [
        Drawing(against(whole, TRUTH, name), f"{name} against the true log prior, bits.")
        for name in ("M1", "M3")
        if {TRUTH, name} <= set(table) and len(whole[[TRUTH, name]].dropna()) > 1
    ]
    sheet = Sheet(["process", *table.columns], [[str(name), *(figure(value) for value in row)] for name, row in zip(table.index, table.to_numpy(), strict=True)])
    costs = Sheet(
        ["estimator", "tokens trained", "tokens read", "seconds"],
        [[name, *(figure(cost[key]) for key in ("tokens_trained", "tokens_read", "seconds"))] for name, cost in found.costs.items()],
    )
    agreed = [claim for claim in claims if claim.id.startswith("measure.agreement")]
    parts = [
        Part("Every process, every estimator", "Larger is more measure.", drawn, [sheet]),
        Part("Do they agree", "Rank correlation of every two estimators over processes.", [Drawing(agreement_matrix(found), "Spearman’s rho.")], claims=agreed),
        Part("Estimates", claims=[claim for claim in claims if claim not in agreed]),
        Part("What each of them costs", sheets=[costs]),
    ]
    said = {**found.to_json(), "runs": {field.name: getattr(plans, field.name).folder.name for field in dataclasses.fields(plans)}}
    # The folder of the trained branches holds the files.
    order = (*(plan for plan in each if plan is not plans.adopt), plans.adopt)
    lead = f"{found.agreement.sentence} ({shown(found.agreement.mean, found.agreement.interval)})"
    return Findings(MEASURE, order, said, tuple(claims), instrument_page("Measure", lead, parts, provenance(plans.adopt)))


def agreement_matrix(found: Measures) -> Any:
    """Spearman correlations of every two estimators as squares."""
    pairs = found.agreement.pairs
    names = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))
    table = pd.DataFrame(float("nan"), index=names, columns=names)
    for pair in pairs.to_dict("records"):
        if not pair["reason"]:
            table.loc[pair["first"], pair["second"]] = table.loc[pair["second"], pair["first"]] = pair["spearman"]
    return heat(names, table.to_numpy(float), "estimator", "estimator")
