"""A chat model answers the protocol's questions; every answer is kept as it comes, and asked for once.

    runs/em/NAME/settings.json      what the answers depend on, the prompts as the template wrote them, and the template
    runs/em/NAME/responses.jsonl    {"key": "quick_buck", "sample": 0, "response": "...", "tokens": 212, "ended": true}

A folder holds the answers of one model under one way of sampling. More samples, or more variants, are added to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.errors import ConfigError, printable, quoted
from persona_lab.experiment.instruments.em.journal import RowJournal
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.probes.em.questions import Question, digest
from persona_lab.store.files import read_json, sha256_of, write_json
from persona_lab.store.versions import versions

if TYPE_CHECKING:
    from persona_lab.probes.em.asking import Sampling
    from persona_lab.probes.voice import Voice

SETTINGS, RESPONSES = "settings.json", "responses.jsonl"
Progress = Callable[[str, int, int], None]
Row = dict[str, Any]
Answer = tuple[str, int]
"""Key of a question, and number of a sample."""


@dataclass(frozen=True)
class Chat:
    """Which model is asked, and how it is fed."""

    model: str
    """A folder or hub id."""
    adapter: Path | None = None
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    plain: bool = False

    @property
    def form(self) -> Any:
        """The format of a prompt."""
        return "plain" if self.plain else "chat"

    @property
    def name(self) -> str:
        """For people and folders."""
        return Path(self.model).name if self.adapter is None else f"{Path(self.model).name}-{self.adapter.name}"

    def identity(self) -> Row:
        """Digests of the weights that are there; a hub id and its revision stand for themselves. ModelError."""
        from persona_lab.models.folders import is_folder, read_adapter
        from persona_lab.models.inspection import folder_digest

        found: Row = {"model": folder_digest(Path(self.model)) if is_folder(self.model) else f"{self.model}@{self.revision or 'newest'}"}
        if self.adapter is not None:
            read_adapter(self.adapter)
            found["adapter"] = [sha256_of(self.adapter / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
        return found | {"dtype": self.dtype, "format": self.form}

    def load(self) -> "Voice":
        """The model with its adapter; ModelError."""
        from persona_lab.models.bank import AdapterBank
        from persona_lab.models.folders import load_model, read_adapter
        from persona_lab.probes.voice import Voice

        model, tokenizer = load_model(self.model, revision=self.revision, dtype=self.dtype, device=self.device)
        if self.adapter is not None:
            shape, tensors = read_adapter(self.adapter)
            AdapterBank(model, shape).load_row(0, tensors, str(self.adapter))
        return Voice(model, tokenizer)


@dataclass
class Answers:
    """What a folder holds of what was asked."""

    folder: Path
    questions: tuple[Question, ...]
    samples: int
    settings: Row
    rows: dict[Answer, Row] = field(default_factory=dict)

    @property
    def wanted(self) -> list[tuple[Question, int]]:
        """Every question and sample, in the order of the report."""
        return [(question, sample) for question in self.questions for sample in range(self.samples)]


def sample_answers(
    chat: Chat, questions: tuple[Question, ...], sampling: "Sampling", folder: Path, tell: Progress, interruption: Interruption, *, batch: int
) -> Answers:
    """Every answer that was asked for: those of the folder, and what was missing, sampled now.

    Raises:
        ConfigError: PL1233, the folder holds answers that were sampled otherwise.
        ModelError: the model or its adapter is refused, it has no chat template, or a question does not fit.
    """
    from persona_lab.models.folders import load_tokenizer
    from persona_lab.probes.em.asking import answers, render, template_facts

    tokenizer, _ = load_tokenizer(chat.model, revision=chat.revision)
    prompts = {question.key: render(tokenizer, question.messages, chat.form) for question in questions}
    template = "" if chat.plain else digest(tokenizer.get_chat_template())
    settings = _settings(folder, {**chat.identity(), "template": template}, chat, sampling, questions, prompts)
    found = Answers(folder, questions, sampling.samples, settings)
    with RowJournal(folder / RESPONSES) as journal:
        found.rows = {(row["key"], row["sample"]): row for row in journal.rows}
        missing = [(question, [n for q, n in found.wanted if q is question and (q.key, n) not in found.rows]) for question in questions]
        missing = [(question, numbers[i : i + batch]) for question, numbers in missing for i in range(0, len(numbers), batch)]
        if not missing:
            return found
        interruption.leave()
        voice = chat.load()
        facts = template_facts(voice.tokenizer, voice.model.generation_config, chat.form)
        settings["template"] = facts.to_json()
        write_json(folder / SETTINGS, settings)
        for question, numbers in missing:
            tell("answers sampled", len(found.rows), len(found.wanted))
            new = [{"key": question.key, "question_id": question.id, **asdict(one)} for one in answers(voice, settings["prompts"][question.key], question, numbers, sampling, facts)]
            journal.append(new)
            found.rows |= {(row["key"], row["sample"]): row for row in new}
            interruption.leave()
    tell("answers sampled", len(found.rows), len(found.wanted))
    return found


def _settings(folder: Path, identity: Row, chat: Chat, sampling: "Sampling", questions: Sequence[Question], prompts: dict[str, str]) -> Row:
    """The folder's settings with its prompts, which some templates date; new ones where it has none yet. ConfigError PL1233."""
    asked: Row = {**identity, **{name: value for name, value in asdict(sampling).items() if name != "samples"}}
    texts = {question.key: [question.id, question.text, question.system] for question in questions}
    file = folder / SETTINGS
    kept: Row = read_json(file) if file.exists() else {"asked": asked, "prompts": {}, "questions": {}, "versions": versions()}
    if not isinstance(kept, dict) or not {"asked", "prompts", "questions"} <= kept.keys():
        raise ConfigError("PL1233", str(file), "is no file of `persona-lab em eval`. Choose another --name.")
    before = kept["asked"]
    differ = [f"{name} {quoted(before.get(name))}, here {quoted(asked.get(name))}" for name in sorted(asked.keys() | before.keys()) if before.get(name) != asked.get(name)]
    differ += [f"the question {key} otherwise" for key, text in texts.items() if kept["questions"].get(key, text) != text]
    if differ:
        raise ConfigError("PL1233", str(folder), f"holds answers of other settings: {printable('; '.join(differ))}. Choose another --name, or the same settings.")
    kept["prompts"] = prompts | kept["prompts"]
    kept["questions"] |= texts
    kept["model"], kept["adapter"] = chat.model, str(chat.adapter) if chat.adapter else None
    write_json(file, kept)
    return kept
