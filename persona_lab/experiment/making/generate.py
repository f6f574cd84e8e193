"""The verb `generate`: the corpora of an experiment and nothing else.

    <out>/injection-3425c1d3b0c4/corpus.jsonl  README.md  audit.json  index.json
    <out>/corpora.json                         which cell trains on which corpus, stage by stage
"""

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from persona_lab.design import Node
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.corpora import make_mixture, make_pool
from persona_lab.experiment.planning.plan import Plan
from persona_lab.store.files import faults, make_folder, write_json
from persona_lab.store.seal import COMMIT, MANIFEST

SHORT = 12


def generate(plan: Plan, out: Path, progress: Callable[[str, int, int], None]) -> int:
    """Write every mixture of a plan below `out`, which must not exist; the number of mixtures.

    What is made stays in the store, so that a run finds it there.

    Raises:
        ConfigError: `out` exists.
        CheckFailed: an audit did not pass.
    """
    if out.exists():
        raise ConfigError("PL1295", str(out), "exists already, and nothing is ever overwritten. Use --out with a new folder.")
    # Made first: an --out that cannot be written is no reason to write documents for minutes.
    partial = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    make_folder(partial)
    try:
        plan.store.check_writable()
        documents = [node for node in plan.nodes if node.kind in ("pool", "mixture")]
        _make(plan, documents, progress)
        mixtures = [node for node in documents if node.kind == "mixture"]
        with faults(out):
            _write(plan, mixtures, partial)
            os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(mixtures)


def _make(plan: Plan, documents: Sequence[Node], progress: Callable[[str, int, int], None]) -> None:
    """The pools and mixtures that the store lacks, pools first."""
    for done, node in enumerate(documents):
        progress("corpora", done, len(documents))
        if plan.store.has(node):
            continue
        with plan.store.attempt(node) as attempt:
            if node.kind == "pool":
                make_pool(node, attempt.folder, plan.files)
                attempt.note(**plan.files.where(node.fields))
            else:
                make_mixture(node, attempt.folder, {source: plan.store.open(pool) for source, pool in node.inputs.items()})
    progress("corpora", len(documents), len(documents))


def _write(plan: Plan, mixtures: Sequence[Node], out: Path) -> None:
    """Every mixture as a folder of its own, and the list of who trains on which."""
    folders: dict[str, str] = {}
    for name, stage in (pair for planned in plan.cells for pair in planned.stages):
        folders.setdefault(stage.inputs["mixture"].id, f"{name}-{stage.inputs['mixture'].id[:SHORT]}")
    for node in mixtures:
        shutil.copytree(plan.store.open(node), out / folders[node.id], ignore=shutil.ignore_patterns(MANIFEST, COMMIT))
    write_json(out / "corpora.json", {p.cell.name: {name: folders[stage.inputs["mixture"].id] for name, stage in p.stages} for p in plan.cells})
