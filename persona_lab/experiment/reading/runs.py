"""Runs by name: where a run's folder is, and what stands in it.

    find_run("quickstart", Path("runs"))   ->   runs/quickstart-16bab757
    open_run("runs/quickstart").table()    ->   the tidy table
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.config.layers import did_you_mean
from persona_lab.errors import ConfigError, CorpusError
from persona_lab.experiment.planning.plan import RUNS
from persona_lab.store.files import read_json

if TYPE_CHECKING:
    import pandas as pd

PLAN, RESULTS, CLAIMS, REPORT = "plan.json", "results.parquet", "claims.json", "report.html"


def is_run(folder: Path) -> bool:
    """Whether a run was written here."""
    return os.path.isfile(folder / PLAN)  # False, too, for what cannot be a path


def all_runs(runs: Path) -> list[Path]:
    """The folders of all runs, by name; links to the newest are left out."""
    return sorted(f for f in runs.iterdir() if is_run(f) and not f.is_symlink()) if runs.is_dir() else []


def find_run(name: str | Path, runs: Path = RUNS) -> Path:
    """The folder of a run that is named by its path, by the link to its newest version, or by its bare name.

    Raises:
        ConfigError: PL1291, there is no such run.
    """
    for folder in (runs / name, Path(name)):
        if is_run(folder):
            return folder.resolve()
    links = [f.name for f in runs.iterdir() if f.is_symlink() and is_run(f)] if runs.is_dir() else []
    known = [*links, *(f.name for f in all_runs(runs))]
    fix = did_you_mean(Path(name).name, known) if known else "Make one with `persona-lab run CONFIG`."
    raise ConfigError("PL1291", str(name), f"there is no such run in {runs}. {fix}")


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: Path

    def table(self) -> "pd.DataFrame":
        """The tidy table: a row for each option of each item, asked of each cell after each of its stages.

        Raises:
            ConfigError: the run has no results yet.
            CorpusError: they are no parquet table.
        """
        import pandas as pd

        file = self._file(RESULTS)
        try:
            return pd.read_parquet(file)
        except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise CorpusError("PL3503", str(file), f"is no parquet table ({error}). Use `persona-lab report` to make it again from the store.") from None

    def claims(self) -> list[dict[str, Any]]:
        """What the report states: `{id, text, value, interval, unit, verdict, recipe}`; the file names lists of nodes, and holds each once.

        Raises:
            ConfigError: the run has no results yet, or the file is not what `report` writes.
        """
        file = self._file(CLAIMS)
        stored = read_json(file)
        try:
            return [{**claim, "recipe": {**claim["recipe"], "node_ids": stored["node_sets"][claim["recipe"]["node_ids"]]}} for claim in stored["claims"]]
        except (KeyError, TypeError) as error:
            raise ConfigError("PL1293", str(file), "is not what this version of the lab writes. Use `persona-lab report` to write it anew.") from error

    def _file(self, name: str) -> Path:
        file = self.folder / name
        if not file.is_file():
            raise ConfigError("PL1293", str(file), "this run has no results yet. Use `persona-lab run`, or `persona-lab report` for what is done so far.")
        return file


def open_run(path: str | Path) -> Run:
    """A run by its path, or by a name in `runs/`; see `find_run`."""
    return Run(find_run(path))
