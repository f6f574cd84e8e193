"""The verb `generate`: the corpora of an experiment and nothing else.

    <out>/injection-3425c1d3b0c4/corpus.jsonl  README.md  audit.json  index.json
    <out>/corpora.json                         which cell trains on which corpus, stage by stage
"""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from persona_lab.errors import ConfigError
from persona_lab.experiment.corpora import make_mixture, make_pool
from persona_lab.experiment.plan import Plan
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
    plan.store.check_writable()
    documents = [node for node in plan.nodes if node.kind in ("pool", "mixture")]
    for done, node in enumerate(documents):
        progress("corpora", done, len(documents))
        if plan.store.has(node):
            continue
        with plan.store.attempt(node) as attempt:
            if node.kind == "pool":
                make_pool(node, attempt.folder)
            else:
                make_mixture(node, attempt.folder, {source: plan.store.open(pool) for source, pool in node.inputs.items()})
    progress("corpora", len(documents), len(documents))
    mixtures = [node for node in documents if node.kind == "mixture"]
    folders: dict[str, str] = {}
    for name, stage in (pair for planned in plan.cells for pair in planned.stages):
        folders.setdefault(stage.inputs["mixture"].id, f"{name}-{stage.inputs['mixture'].id[:SHORT]}")
    partial = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    make_folder(partial)
    with faults(out):
        try:
            for node in mixtures:
                shutil.copytree(plan.store.open(node), partial / folders[node.id], ignore=shutil.ignore_patterns(MANIFEST, COMMIT))
            write_json(partial / "corpora.json", {p.cell.name: {name: folders[stage.inputs["mixture"].id] for name, stage in p.stages} for p in plan.cells})
            os.rename(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return len(mixtures)
