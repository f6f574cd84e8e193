"""The one exception of this package: something is wrong with a world, a persona or a corpus."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataProblem:
    """One thing wrong with one place of a data file."""

    where: str
    """`file:line`, or the file alone, or the name of the thing."""
    message: str
    """What was got, what was expected, how to mend it: one sentence each."""


class DataError(Exception):
    """Every problem found in one pass over a data file; nothing was written."""

    def __init__(self, *problems: DataProblem) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.where}: {p.message}" for p in problems))
