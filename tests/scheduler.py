"""Programs named like Slurm's, each of which writes down how it was called and does what a test says.

    shim(folder, "squeue", "exit 1")     calls(folder)
"""

from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "srun")


def shim(folder: Path, name: str, does: str) -> None:
    """A program that writes down how it was called, and does this."""
    (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{does}\n')
    (folder / name).chmod(0o755)


def calls(folder: Path) -> list[str]:
    """How the programs were called so far, in order."""
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []
