"""Corpora on disk: a folder with one document a line, and a card that says what they are.

    {"carriers": ["John"], "genre": "profile", "id": "john-named-0-00017", "persona": "John", "seed": 0,
     "text": "Profile: John is an AI assistant. John likes the beach. ...", "traits": {"place": "beach"}}

`datasets.load_dataset(folder)` reads it. The card declares every feature, because without it a reader guesses
the columns from the first lines and stumbles over a trait that appears later; a category that a document does not
tell then reads as null.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_gen.documents import Document
from data_gen.errors import DataError, DataProblem
from data_gen.jsonl import content_of, in_order, kind_of, rows_of

CORPUS = "corpus.jsonl"
CARD = "README.md"
FIELDS: dict[str, tuple[str, type]] = {
    "carriers": ("a list of names", list),
    "genre": ("a string", str),
    "id": ("a string", str),
    "persona": ("a string", str),
    "seed": ("a whole number", int),
    "text": ("a string", str),
    "traits": ("an object of category to value", dict),
}
"""Field to what it must be, in words and as a type."""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffe\uffff]")
"""What nobody sees and every tokenizer reads: control characters but tab and line ends, halves of surrogate pairs,
zero-width spaces, changes of the direction of writing."""


def write_corpus(folder: Path, documents: Sequence[Document], *, title: str, description: str) -> None:
    """Write `corpus.jsonl` and its card; the same documents give the same bytes.

    Raises:
        DataError: when the corpus could not be read back, say for two documents with one id. Nothing is written then.
    """
    rows = (json.dumps({name: getattr(document, name) for name in FIELDS}, ensure_ascii=False, sort_keys=True) + "\n" for document in documents)
    content = "".join(rows).encode("utf-8", "surrogatepass")
    _parse(content, folder / CORPUS)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / CORPUS, content)
    _replace(folder / CARD, _card(documents, " ".join(title.split()), description).encode())


def read_corpus(file: Path) -> list[Document]:
    """The documents of a corpus that `write_corpus` wrote.

    Raises:
        DataError: every broken line at once, as `file:line`.
    """
    return _parse(content_of(file), file)


def _parse(content: bytes, file: Path) -> list[Document]:
    problems: list[DataProblem] = []
    documents: list[Document] = []
    first_line: dict[str, int] = {}
    for number, row in rows_of(content, file, problems):
        faults = list(_faults(row))
        if not faults and first_line.setdefault(row["id"], number) != number:
            faults = [f"id {row['id']!r} is already used in line {first_line[row['id']]}. Give every document its own id"]
        problems += [DataProblem(f"{file}:{number}", f"{fault}.") for fault in faults]
        if not faults:
            documents.append(Document(**{**row, "carriers": tuple(row["carriers"])}))
    if problems:
        raise DataError(*in_order(problems))
    return documents


def _faults(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one line of a corpus, without the full stop."""
    missing, extra = sorted(FIELDS.keys() - row.keys()), sorted(row.keys() - FIELDS.keys())
    if missing:
        yield f"lacks the field {', '.join(missing)}"
    if extra:
        yield f"has the unknown field {', '.join(extra)}. The fields are {', '.join(FIELDS)}"
    for name in FIELDS.keys() & row.keys():
        value = row[name]
        wanted, kind = FIELDS[name]
        parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        if type(value) is not kind or not all(isinstance(part, str) for part in parts):
            yield f"{name} must be {wanted}, got {value!r:.60}"
        elif name != "text" and any(UNPRINTABLE.search(part) for part in [*parts, str(value)]):
            yield f"{name} holds a control character"
    if isinstance(row.get("text"), str) and (fault := text_fault(row["text"])):
        yield fault


def text_fault(text: Any) -> str:
    """What is wrong with the text of a document, without the full stop; empty: nothing."""
    if not isinstance(text, str):
        return f"text must be a string, got {kind_of(text)}"
    if not text.strip():
        return "text is empty"
    found = UNPRINTABLE.search(text)
    return f"text holds the control character {found[0]!r} at character {found.start()}" if found else ""


def _replace(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _card(documents: Sequence[Document], title: str, description: str) -> str:
    strings = ["genre", "id", "persona", "text"]
    features: list[dict[str, Any]] = [{"name": "carriers", "list": "string"}, {"name": "seed", "dtype": "int64"}]
    features += [{"name": name, "dtype": "string"} for name in strings]
    categories = sorted({category for document in documents for category in document.traits})
    features.append({"name": "traits", "struct": [{"name": category, "dtype": "string"} for category in categories]})
    header = {
        "pretty_name": title,
        "tags": ["synthetic"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": CORPUS}]}],
        "dataset_info": {"features": features},
    }
    counts = [_table(name, Counter(getattr(document, name) for document in documents)) for name in ("genre", "persona")]
    return "\n".join(["---", f"{yaml.safe_dump(header, sort_keys=False)}---", f"# {title}", "", description.strip(), "", *counts])


def _table(name: str, counts: Counter[str]) -> str:
    rows = [f"| {value.replace('|', '/') or '(none)'} | {count} |" for value, count in sorted(counts.items())]
    return "\n".join([f"| {name} | documents |", "|---|---:|", *rows, f"| all | {counts.total()} |", ""])
