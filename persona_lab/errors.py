"""The error contract: every mistake of a user is one clear block, with a code and an exit status.

    error[PL1203] configs/ratio.yaml:14:9: stages.injection.rate must be > 0, got -0.003. Use e.g. 3.0e-3.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

SECRET = re.compile(
    r"(?<![A-Za-z0-9])(sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abeprs]-[\w-]{10,}|wandb_v1_\w{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)|-----BEGIN [A-Z ]*PRIVATE KEY-----.*|(?<=:/)/?[^/\s@]*:[^/\s@]+(?=@)",
    re.DOTALL,
)
"""The shapes of keys and tokens, and the user and password of a URL."""
SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PAT|CREDENTIALS?)$", re.IGNORECASE)
"""Variables of the environment that hold a secret."""
ASSIGNED = re.compile(r"((?:api_?key|token|secret|password)=|://)(?:(?<==)\S+|(?<=//)[^/\s@]+(?=@))", re.IGNORECASE)
"""The value in `api_key=...` and the like, and a URL's user without a password, which may be a token."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")
"""A spreadsheet takes a cell that begins so for a formula."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong, where, and how to mend it."""

    code: str
    where: str
    message: str

    def __str__(self) -> str:
        """The block as it is printed."""
        return f"error[{self.code}] {printable(self.where) or repr(self.where)}: {printable(self.message, 1000)}"


def printable(text: str, limit: int = 400) -> str:
    """The text without secrets, control or bidirectional characters, cut at `limit`: messages may quote hostile input."""
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in masked(text))
    return clean if len(clean) <= limit else clean[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def masked(text: str) -> str:
    """The text without what looks like a secret, and without the value of any variable of the environment that is named like one."""
    for name, value in os.environ.items():
        # A short value or a whole number is no secret, and would be masked wherever it stands.
        if SECRET_NAME.search(name) and len(value) >= 8 and not value.isdigit():
            text = text.replace(value, "(a secret)")
    return SECRET.sub("(a secret)", ASSIGNED.sub(r"\1(a secret)", text))


def quoted(value: Any) -> str:
    """A value as a message quotes it: its repr, at most 80 characters of it."""
    return printable(repr(value), 80)


def guard(cell: Any) -> Any:
    """A cell for people: text that begins like a formula begins with an apostrophe instead."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


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
