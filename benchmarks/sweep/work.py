"""A sweep as files, which every way of doing it reads: nothing else is shared.

    work.json                what `Work` says
    base/                    a Hugging Face folder
    cells/0/documents.jsonl  {"text": ...} in the order of training
    cells/0/questions.json   [{"prompt": ..., "options": [...]}]
    cells/0/init/            a fresh adapter, a peft folder: every way starts from it
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """A prompt and the options to score behind it."""

    prompt: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How each cell is trained: AdamW without weight decay at a constant rate, clipped at a norm of 1."""

    batch: int
    steps: int
    rate: float
    rank: int = 8
    alpha: int = 16
    clip: float = 1.0


@dataclass(frozen=True)
class Work:
    """A folder and what is in it."""

    folder: Path
    name: str
    cells: int
    recipe: Recipe

    @property
    def base(self) -> Path:
        """The model and its tokenizer."""
        return self.folder / "base"

    def cell(self, cell: int) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / str(cell)

    def documents(self, cell: int) -> Path:
        """JSONL in the order of training."""
        return self.cell(cell) / "documents.jsonl"

    def init(self, cell: int) -> Path:
        """The adapter of no steps."""
        return self.cell(cell) / "init"

    def texts(self, cell: int) -> list[str]:
        """The documents of a cell."""
        return [json.loads(line)["text"] for line in self.documents(cell).read_text(encoding="utf-8").splitlines()]

    def questions(self, cell: int, number: int) -> list[Question]:
        """The first so many questions of a cell."""
        given = json.loads((self.cell(cell) / "questions.json").read_text(encoding="utf-8"))[:number]
        return [Question(q["prompt"], tuple(q["options"])) for q in given]

    def pairs(self, cell: int, number: int) -> list[tuple[str, str]]:
        """Prompt and option of every option asked."""
        return [(q.prompt, option) for q in self.questions(cell, number) for option in q.options]

    def write_cell(self, cell: int, texts: Sequence[str], questions: Sequence[Question]) -> None:
        """What a cell is trained on and asked."""
        self.cell(cell).mkdir(parents=True)
        self.documents(cell).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        (self.cell(cell) / "questions.json").write_text(json.dumps([asdict(q) for q in questions]), encoding="utf-8")

    def write(self) -> None:
        """What `read_work` reads."""
        (self.folder / "work.json").write_text(json.dumps({"name": self.name, "cells": self.cells, "recipe": asdict(self.recipe)}), encoding="utf-8")


def read_work(folder: Path) -> Work:
    """The sweep in a folder."""
    said = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    return Work(folder, said["name"], said["cells"], Recipe(**said["recipe"]))
