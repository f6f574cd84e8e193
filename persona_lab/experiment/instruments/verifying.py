"""The verb `verify` for what an instrument wrote: its claims, its JSON and its page, computed once more from the store."""

from pathlib import Path

from persona_lab.errors import ConfigError
from persona_lab.experiment.checking.verify import Verified, claim_drifts, damaged_nodes, node_drifts, page_drifts, said_drifts
from persona_lab.experiment.instruments.em.findings import RESULT, claims_of_tables, published_name
from persona_lab.experiment.instruments.findings import findings_of, rests_on
from persona_lab.experiment.instruments.mechanism.findings import FUNCTION as MECHANISM
from persona_lab.experiment.instruments.mechanism.findings import nodes_of, stated
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.writing.making import RESULT as WRITTEN
from persona_lab.experiment.writing.verifying import verify_written
from persona_lab.store.files import read_json
from persona_lab.store.nodes import Store


def verify_instrument(plan: Plan) -> Verified | None:
    """Compare an instrument's files with the store; None for a run that is no instrument's.

    Raises:
        ConfigError: the run has no claims yet, or its files are not what the instrument writes.
    """
    runs = rests_on(plan)
    if not runs:
        return None
    claims = Run(plan.folder).claims()
    nodes = {node.id for run in runs for node in run.nodes if run.store.has(node)}
    asked = sum(len(planned.scores) for run in runs for planned in run.cells)
    drifts = tuple(drift for run in runs for drift in damaged_nodes(run))
    if not drifts:
        found = findings_of(plan)
        drifts = (*claim_drifts(claims, found.claims), *said_drifts(found.file, found.said), *page_drifts(found.file.with_suffix(".html"), found.page))
    return Verified(len(claims), len(nodes), asked, drifts)


def verify_folder(name: str, runs: Path) -> Verified | None:
    """Compare what `mechanism`, `em eval` or `write` left with what it rests on; None where the name is no such folder's.

    Raises:
        ConfigError, CorpusError, DataError: the files are not what these commands write.
    """
    for folder in (runs / name, Path(name)):
        if (folder / f"{MECHANISM}.json").is_file():
            return _verify_mechanism(folder, Store(folder.absolute().parent / "store"))
        if (folder / RESULT).is_file():
            return _verify_judged(folder)
        if (folder / WRITTEN).is_file():
            return verify_written(folder)
    return None


def _verify_mechanism(folder: Path, store: Store) -> Verified:
    claims, nodes = Run(folder).claims(), nodes_of(folder)
    drifts = tuple(node_drifts(store, [*nodes, *(node.inputs["base"] for node in nodes)]))
    if not drifts:
        found = stated(store, nodes)
        file = folder / f"{MECHANISM}.json"
        drifts = (*claim_drifts(claims, found.claims), *said_drifts(file, found.said), *page_drifts(file.with_suffix(".html"), found.page))
    return Verified(len(claims), 2 * len(nodes), 0, drifts)


def _verify_judged(folder: Path) -> Verified:
    """An evaluation rests on the tables of its judges alone; the page, which shows answers too, is not drawn again."""
    claims, file = Run(folder).claims(), folder / RESULT
    said = read_json(file)
    try:
        (first, *others), published, planned = said["judge_names"], said["published"], int(said["planned"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("PL1293", str(file), "is not what `persona-lab em eval` writes. Evaluate again: what was judged is kept.") from error
    again = claims_of_tables(folder, [first, *others], published_name(published))
    drifts = (*claim_drifts(claims, again), *said_drifts(file, {**said, "claims": [claim.to_json() for claim in again]}))
    return Verified(len(claims), 0, planned, drifts)
