"""What a finished run shows at wandb: one `generate` job and one `analyse` job. Nothing here changes a result."""

from pathlib import Path

from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import Shown
from persona_lab.experiment.reading.workspace import EFFECTS, write_specs
from persona_lab.tracking import JobType, Tracker, open_tracker

MOST = 4
"""Corpora and adapters of one run that are mirrored: the store holds the rest."""

DRAWN = ("condition", "x", "dose", "seed", "before", "after", "delta", "share")
"""Columns of the effects that panels draw."""


def publish(plan: Plan, shown: Shown) -> None:
    """Mirror the corpora, the claims, the effects, the scores, the report and a few adapters of the treatment; write down how wandb should show them."""
    mode = plan.loaded.experiment.machine.wandb
    if mode == "disabled":
        return
    write_specs(plan)
    treatment = plan.loaded.experiment.analysis.treatment
    trained = {stages[-1][1].id: stages[-1][1] for p in plan.cells if (stages := p.stages) and p.cell.condition == treatment}
    with _job(plan, "generate") as tracker:
        for node in [n for n in plan.nodes if n.kind == "mixture" and plan.store.has(n)][:MOST]:
            tracker.artifact(f"corpus-{node.id[:12]}", "dataset", plan.store.folder(node))
    with _job(plan, "analyse") as tracker:
        claims = shown.summary.claims
        tracker.summary({claim.id: claim.value for claim in claims if claim.value is not None} | shown.accounting)
        tracker.table("claims", ["id", "text", "shown", "unit", "verdict"], [[c.id, c.text, c.shown, c.unit, c.verdict] for c in claims])
        effects = shown.summary.frames.get("effects")
        if effects is not None:
            drawn = effects[[name for name in DRAWN if name in effects]]
            tracker.table(EFFECTS, list(drawn.columns), drawn.astype(object).where(drawn.notna(), None).to_numpy().tolist())
        table = Run(plan.folder).table()
        tracker.table("scores", list(table.columns), table.astype(object).where(table.notna(), None).to_numpy().tolist())
        tracker.artifact(f"report-{plan.folder.name}", "report", shown.report)
        for node in [n for n in trained.values() if plan.store.has(n)][-MOST:]:
            tracker.artifact(f"adapter-{node.id[:12]}", "model", plan.store.folder(node) / "adapter")


def _job(plan: Plan, job: JobType) -> Tracker:
    experiment = plan.loaded.experiment
    return open_tracker(
        mode=experiment.machine.wandb,
        folder=Path(plan.folder / "tracking" / job),
        experiment=plan.folder.name,
        node=plan.id,
        job_type=job,
        name=f"{experiment.name} {job}",
        config={key: value for key, value in plan.resolved.items() if key != "machine"},
        wandb_folder=plan.folder,
    )
