"""What is exported: a cell of a run after its last stage, or the base that it was trained from.

    subject = find_subject(plan, "linked/ln_ratio=0/seed0/swap0")
    subject.slug   ->   "quickstart_linked_ln_ratio_0_seed0_swap0"
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from persona_lab.config.schema import HuggingFaceBase
from persona_lab.design import Node
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.reading.ask import find_cell
from persona_lab.models.folders import local_folder
from persona_lab.models.hub import pinned
from persona_lab.models.inspection import is_folder
from persona_lab.store.files import faults, make_folder

BASE = "base"
"""In place of a cell: the model before anything was trained."""


@dataclass(frozen=True)
class Subject:
    """One model of a run: the base, and the adapter of a cell's last stage unless it is the plain base."""

    plan: Plan
    planned: PlannedCell
    """The cell; of the plain base the one as which it is asked."""
    stage: Node | None
    """The last stage; None for the plain base."""
    scores: Node
    """What was asked of it."""

    @property
    def name(self) -> str:
        """The cell's name, or `base`."""
        return self.planned.cell.name if self.stage else BASE

    @property
    def slug(self) -> str:
        """Run and cell as one word of letters, digits and underscores; a ratio and its inverse differ."""
        return re.sub(r"[^a-z0-9]+", "_", f"{self.plan.loaded.experiment.name}/{self.name}".lower().replace("=-", "=minus")).strip("_")

    @property
    def hf(self) -> HuggingFaceBase | None:
        """The base where it is a Hugging Face model; None where it was pretrained here."""
        base = self.planned.cell.base
        return base if isinstance(base, HuggingFaceBase) else None

    @property
    def base(self) -> Node:
        """The node of the base."""
        return self.scores.inputs["base"]

    @property
    def base_path(self) -> str:
        """What `from_pretrained` takes: a folder, or a hub id. NodeMissing where it was not made yet."""
        return self.hf.path if self.hf else str(self.plan.store.open(self.base) / "model")

    @property
    def revision(self) -> str | None:
        """The commit of a hub id; None for a folder."""
        return pinned(self.hf.path, self.hf.revision) if self.hf and not is_folder(self.hf.path) else None

    @property
    def base_folder(self) -> Path:
        """Where the base's files lie on this machine. NodeMissing where it was not made yet."""
        return local_folder(self.base_path, self.revision)

    @property
    def dtype(self) -> str:
        """In which numbers the run reads the base."""
        return self.hf.dtype if self.hf else "float32"

    @property
    def adapter(self) -> Path | None:
        """The adapter's folder in the store; None for the plain base. NodeMissing where it was not trained yet."""
        return self.plan.store.open(self.stage) / "adapter" if self.stage else None


def find_subject(plan: Plan, name: str) -> Subject:
    """The model that is named: a cell, or a part of its name that no other has, or `base`.

    Raises:
        ConfigError: PL1294, no cell or several have this name.
    """
    planned = plan.cells[0] if name == BASE else find_cell(plan, name)
    if name == BASE or not planned.stages:
        return Subject(plan, planned, None, planned.scores[0][1])
    return Subject(plan, planned, planned.stages[-1][1], planned.scores[-1][1])


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `out` when the block ends well, and is gone when it does not.

    Raises:
        ConfigError: PL1260, something stands at `out` that is no empty folder.
        EnvironmentFault: it cannot be written.
    """
    with faults(out, doing="read"):
        taken = os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir()))
    if taken:
        raise ConfigError("PL1260", str(out), "is there already, and nothing is ever overwritten. Use --out with a new or an empty folder.")
    partial = out.absolute().with_name(f".{out.absolute().name}.{secrets.token_hex(8)}")
    make_folder(partial)
    try:
        with faults(out):
            yield partial
            os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
