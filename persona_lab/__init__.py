"""A laboratory for the generalization of fine-tuning.

    import persona_lab
    table = persona_lab.open_run("runs/quickstart").table()
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persona_lab.experiment.reading.runs import Run

__version__ = "0.1.0"


def open_run(path: str | Path) -> "Run":
    """A run by its path, or by its name in `runs/`: `.table()` is the tidy table, `.claims()` what the report states.

    Raises:
        ConfigError: there is no such run.
    """
    # Every part of the package imports this module first, so it asks for nothing before it is called.
    from persona_lab.experiment.reading.runs import open_run as opened

    return opened(path)
