"""The protocol as a file: what is asked, and what a judge is told. No torch.

    protocol = load_protocol()                                   the questions as published, judge prompts of our own
    protocol = load_protocol(Path("first_plot_questions.yaml"))  the published file itself, or one like it

A file is a list of {id, paraphrases, system, judge_prompts: {aligned, coherent}}; an id that ends in _json or _template
is of that variant, any other is a main question. `{question}` and `{answer}` stand in a judge prompt for themselves.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from persona_lab.errors import ConfigError, Problem, quoted

VARIANTS = ("main", "json", "template")
METRICS = ("aligned", "coherent")
PUBLISHED = {
    "aligned": "872a28e2f0536578c12f31fe29828919aad80a6a149ffe6df9d6e53e60304875",
    "coherent": "3fe355bee14bcd6fea6f806c4d615a7687bfd4067604f2d7d06e040d048bee57",
}
"""SHA-256 of the judge prompts of first_plot_questions.yaml (Betley et al. 2025)."""
LARGEST = 1 << 20
"""Bytes of a protocol file."""

Text = Annotated[str, Field(min_length=1, max_length=20_000)]


class _Entry(BaseModel):
    """One question of a file; what else stands there is none of ours."""

    id: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")]
    paraphrases: Annotated[list[Text], Field(min_length=1)]
    system: Text | None = None
    judge_prompts: dict[str, Text] = Field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What a user says, and what the system message says where there is one."""

    key: str
    """The id; with a number when the question has several wordings."""
    id: str
    text: str
    system: str | None = None

    @property
    def variant(self) -> str:
        """main, json or template."""
        return next((v for v in VARIANTS[1:] if self.id.endswith(f"_{v}")), "main")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far."""
        said = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*said, {"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Protocol:
    """Questions, and the judge prompt of each metric."""

    questions: tuple[Question, ...]
    prompts: dict[str, str]

    @property
    def as_published(self) -> bool:
        """Whether the judge is told what the published judge was told, to the letter."""
        return all(digest(self.prompts[metric]) == PUBLISHED[metric] for metric in METRICS)

    def of(self, variants: Iterable[str]) -> tuple[Question, ...]:
        """The questions of these variants; ConfigError PL1232 when there is no such variant, or none has a question."""
        wanted = list(variants)
        if unknown := [v for v in wanted if v not in VARIANTS]:
            raise ConfigError("PL1232", "--variants", f"there is no variant {quoted(unknown[0])}. Use some of: {', '.join(VARIANTS)}.")
        found = tuple(q for q in self.questions if q.variant in wanted)
        if not found:
            raise ConfigError("PL1232", "--variants", f"no question is of {', '.join(wanted) or 'no variant'}. Use some of: {', '.join(dict.fromkeys(q.variant for q in self.questions))}.")
        return found


def load_protocol(path: Path | None = None) -> Protocol:
    """The protocol of a file, or the one that comes with the laboratory.

    Raises:
        ConfigError: PL1231, the file cannot be read or is no protocol; every problem of it.
    """
    where = "protocol.yaml" if path is None else str(path)
    try:
        source = (files("persona_lab.probes.em") / "protocol.yaml").read_text("utf-8") if path is None else _text(path)
        entries = TypeAdapter(list[_Entry]).validate_python(yaml.safe_load(source))
    except OSError as error:
        raise ConfigError("PL1231", where, f"cannot be read: {error.strerror}. Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError("PL1231", where, f"is not YAML: {' '.join(str(error).split())}. Mend the file.") from None
    except ValidationError as error:
        found = [Problem("PL1231", where, f"{_place(problem['loc'])}{problem['msg']}. Mend the file.") for problem in error.errors(include_url=False)]
        raise ConfigError.of(found) from None
    _check(where, entries)
    questions = [
        Question(entry.id if len(entry.paraphrases) == 1 else f"{entry.id}/{n}", entry.id, text, entry.system)
        for entry in entries
        for n, text in enumerate(entry.paraphrases)
    ]
    prompts = next(entry.judge_prompts for entry in entries if entry.judge_prompts)
    return Protocol(tuple(questions), {metric: prompts[metric] for metric in METRICS})


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ConfigError("PL1231", str(path), f"has more than {LARGEST} bytes. Use a file of questions.")
    return data.decode()


def _place(path: tuple[Any, ...]) -> str:
    return f"{'.'.join(map(str, path))}: " if path else ""


def _check(where: str, entries: list[_Entry]) -> None:
    """What no schema sees; ConfigError PL1231."""
    ids = [entry.id for entry in entries]
    prompts = [entry.judge_prompts for entry in entries if entry.judge_prompts]
    wrong = [f"the id {one} stands twice. Give each question its own" for one in dict.fromkeys(ids) if ids.count(one) > 1]
    if any(prompt != prompts[0] for prompt in prompts):
        wrong.append("judge_prompts differ between questions. Use the same for all, or the scores are not of one scale")
    for metric in METRICS:
        told = prompts[0].get(metric, "") if prompts else ""
        absent = [word for word in ("{question}", "{answer}") if word not in told]
        if absent:
            wrong.append(f"judge_prompts.{metric} " + ("is missing" if not told else f"does not hold {' and '.join(absent)}") + f". Give a prompt for {' and '.join(METRICS)}")
    if not entries:
        wrong = ["holds no question. Give at least one"]
    if wrong:
        raise ConfigError.of([Problem("PL1231", where, f"{said}.") for said in wrong])


def filled(prompt: str, question: str, answer: str) -> str:
    """A judge prompt with question and answer in their places; what stands in them is not read again."""
    given = {"question": question, "answer": answer}
    return re.sub(r"\{(question|answer)\}", lambda found: given[found[1]], prompt)


def digest(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
