"""The error contract: every mistake of a user is one clear block, with a code and an exit status.

    error[PL1203] configs/ratio.yaml:14:9: stages.injection.rate must be > 0, got -0.003. Use e.g. 3.0e-3.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong, where, and how to mend it."""

    code: str
    where: str
    message: str

    def __str__(self) -> str:
        """The block as it is printed."""
        return f"error[{self.code}] {printable(self.where)}: {printable(self.message, 2000)}"


def printable(text: str, limit: int = 400) -> str:
    """The text without control or bidirectional characters, cut at `limit`: messages may quote hostile input."""
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


class LabError(Exception):
    """A user's mistake or the environment's; ends the command with `exit_code` and no traceback."""

    exit_code = 1

    def __init__(self, code: str, where: str, message: str) -> None:
        self.problems = [Problem(code, where, message)]
        super().__init__(str(self.problems[0]))

    @classmethod
    def of(cls, problems: list[Problem]) -> "LabError":
        """One error for all problems of a file."""
        error = cls(problems[0].code, problems[0].where, problems[0].message)
        error.problems = problems
        error.args = ("\n".join(map(str, problems)),)
        return error


class CheckFailed(LabError):
    """A check did not pass: a gate, an audit, a claim that drifted."""


class ConfigError(LabError):
    """A config or the command line is wrong."""

    exit_code = 2


class CorpusError(LabError):
    """A data file is wrong."""

    exit_code = 3


class ModelError(LabError):
    """A model folder or an adapter is wrong."""

    exit_code = 4


class EnvironmentFault(LabError):
    """The disk, a permission, a missing program or the network."""

    exit_code = 5
