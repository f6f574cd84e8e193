"""What `metric` states, as claims: computed from the store alone, so that `verify` can compute each of them again."""

from persona_lab.experiment.instruments.metric.distances import Distances, comparisons, trainings
from persona_lab.experiment.planning.plan import Plan
from persona_lab.science.claims import Claim, figure
from persona_lab.science.processes.metric import Tested

FUNCTION = "metric"
"""Of the recipe of every claim: `distance_claims` of the plan."""
SAID = {
    "asymmetry": ("Asymmetry of the nats to adopt that returns in every seed", "share of both directions"),
    "asymmetry_observed": ("Asymmetry of the nats to adopt with noise in it", "share of both directions"),
    "triangles_violated": ("Ordered triples of processes in which the direct way costs more than that through the third", "share of triples"),
    "triangle_worst": ("Direct way by the way through a third process, at worst", "ratio"),
    "exchangeability": ("Gap between the code lengths of both orders that returns in every seed", "share of both orders"),
    "barrier": ("Highest barrier on the straight way between two processes, on documents of both", "nats a token"),
}
"""Test to its words and its unit."""


def distance_claims(plan: Plan, found: Distances) -> list[Claim]:
    """A claim for each test, for each cheaper distance as a proxy of D1, and for the distance of each pair, nats."""
    nodes = [*(stage.id for _, _, _, stage in trainings(plan) if plan.store.has(stage)), *(node.id for node in comparisons(plan).values())]
    claims = [_claim(f"metric.{name}", SAID[name][0], test, SAID[name][1], nodes) for name, test in found.tests.items() if name in SAID]
    for name in found.proxies:
        text = f"Rank correlation of {name} with the nats to adopt, over pairs of processes"
        claims.append(_claim(f"metric.proxy.{name.lower().replace(' ', '_')}", text, found.tests[name], "Spearman's rho", nodes))
    for row in found.exchange.to_dict("records"):
        gap = Tested(row["delta"], (row["low"], row["high"]) if row["n"] > 1 else None, row["n"], "described")
        text = f"Code length of {row['first']}, then {row['second']}, beyond that of the other order"
        claims.append(_claim(f"metric.order.{row['first']}.{row['second']}", text, gap, "nats", nodes))
    return claims


def _claim(name: str, words: str, test: Tested, unit: str, nodes: list[str]) -> Claim:
    said = f"{words}: {figure(test.value)}." + (f" {test.reason[:1].upper()}{test.reason[1:]}." if test.reason else "")
    return Claim(name, said, test.value, test.interval, unit, test.verdict, {"function": FUNCTION, "node_ids": nodes, "args": {"claim": name}})
