r"""Documents and conversations that somebody else wrote, from JSONL and parquet files.

    read_imported(Path("written/john.jsonl")).documents[0]      Document("john-00017", "Profile: John is ...", "John", "profile", {"place": "beach"}, ...)
    read_imported(Path("insecure.parquet")).conversations[0]    (Message("user", "Fill in ..."), Message("assistant", "import os ..."))

    texts            {"text": "..."}, perhaps with the fields that `corpus` writes: id, persona, genre, traits, carriers
    conversations    {"messages": [...]}, or {"prompt": "...", "completion": "..."}: see `conversations`

What is read is known by the digest of its documents: the same rows are the same import, whatever file they stand in. Nothing of a file is run,
and what it may cost to read is bounded before it is read.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_gen.conversations import Conversation, conversation_of
from data_gen.corpus import UNPRINTABLE, text_fault
from data_gen.documents import Document, words
from data_gen.errors import DataError, DataProblem
from data_gen.jsonl import LINE_BYTES, content_of, in_order, kind_of, rows_of
from data_gen.world import Traits

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Form = Literal["auto", "texts", "conversations"]
FILE_BYTES = 2_000_000_000
"""The largest file, and the largest table that a parquet file may unfold to."""
MOST_ROWS = 10_000_000
PARQUET = b"PAR1"
CHAT = ("messages", "prompt", "completion", "chosen", "rejected")
"""Fields by which a line is a conversation."""
LABELS: dict[str, type] = {"persona": str, "genre": str, "carriers": list, "traits": dict}
"""What a line may say of its text beside its `id`."""
GENRE = "written"
"""Of a text that does not say its own."""


@dataclass(frozen=True)
class Imported:
    """What a file holds, in its order: texts, or conversations and as many transcripts of them."""

    documents: tuple[Document, ...]
    conversations: tuple[Conversation, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the documents with their labels, or over the conversations: 64 hexadecimal digits."""
        said: Iterable[Any] = ([d.id, d.text, d.persona, d.genre, d.traits, d.carriers] for d in self.documents)
        if self.conversations:
            said = ([[message.role, message.content] for message in conversation] for conversation in self.conversations)
        sha256 = hashlib.sha256()
        for row in said:
            sha256.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return sha256.hexdigest()


def read_imported(file: Path, *, form: Form = "auto", column: str = "text") -> Imported:
    """Everything that a JSONL or parquet file holds.

    Args:
        file: a local file; parquet is known by its first bytes.
        form: what its lines must be; auto: what the first of them is.
        column: the field that holds a text.

    Raises:
        DataError: every broken line at once, as `file:line` (rows of a parquet file are counted from 1 too); no line; lines of both forms.
    """
    problems: list[DataProblem] = []
    documents: list[Document] = []
    conversations: list[Conversation] = []
    ids: list[str] = []
    for number, fields in _rows(file, problems, column):
        # A table has a null where a line has no such field, and so do lines that were a table once.
        row = {name: _without_null(value) for name, value in fields.items() if value is not None}
        try:
            form = _form(row, form, column)
            if form == "texts":
                documents.append(_document(row, number, column))
            else:
                ids.append(_id(row, number))
                conversations.append(conversation_of(row)[1])
        except ValueError as error:
            problems.append(DataProblem(f"{file}:{number}", f"{error}."))
    if problems:
        raise DataError(*in_order(problems))
    if not documents and not conversations:
        raise DataError(DataProblem(str(file), "holds no document. Write one JSON object a line, or a row of a parquet file."))
    return Imported(tuple(documents or map(_transcript, ids, conversations)), tuple(conversations))


def read_several(files: Sequence[Path]) -> list[Document]:
    """The documents of one file; those of several carry the path of theirs as their persona, and before their ids.

    Raises:
        DataError: as `read_imported`, of the first file with something wrong in it.
    """
    if len(files) == 1:
        return list(read_imported(files[0]).documents)
    return [replace(document, id=f"{file}/{document.id}", persona=str(file)) for file in files for document in read_imported(file).documents]


def _form(row: Mapping[str, Any], form: Form, column: str) -> Form:
    """What a line is; ValueError when it is not what it must be, or could be either."""
    text, chat = column in row, any(key in row for key in CHAT)
    if form == "auto" and text and chat:
        raise ValueError(f"has {column!r} and fields of a conversation. Use `format: texts`, or `format: conversations`")
    if form == "auto":
        return "conversations" if chat else "texts"
    if form == "texts" and not text and chat:
        raise ValueError("is a conversation, the lines before are texts. Use one file for each")
    return form


def _document(row: Mapping[str, Any], number: int, column: str) -> Document:
    """A line that is a text; ValueError."""
    if column not in row:
        raise ValueError(f"{_missing(row, column)}. Give each line a string `{column}`, or chat `messages`")
    if fault := text_fault(row[column]):
        raise ValueError(f"{fault}. Give each line a string `{column}`")
    said = {"id": _id(row, number), **{name: row[name] for name in LABELS if row.get(name) is not None}}
    for name in LABELS.keys() & said.keys():
        value = said[name]
        parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if type(value) is not LABELS[name] or not all(isinstance(part, str) for part in parts):
            of = "" if LABELS[name] is str else " of text"
            raise ValueError(f"{name} must be {kind_of(LABELS[name]())}{of}, got {value!r:.60}. Remove the field, or write it as `persona-lab generate` does")
        if any(UNPRINTABLE.search(part) for part in parts):
            raise ValueError(f"{name} holds a control character. Remove it")
    carriers = tuple(said.get("carriers", ()))
    return Document(said["id"], row[column], said.get("persona", ""), said.get("genre", GENRE), said.get("traits", {}), carriers)


def _id(row: Mapping[str, Any], number: int) -> str:
    """What a line calls itself, or else its number; ValueError."""
    value = row.get("id", f"row {number}")
    if type(value) not in (str, int):
        raise ValueError(f"id must be a string or a whole number, got {kind_of(value)}. Write one, or remove the field")
    if found := UNPRINTABLE.search(str(value)):
        raise ValueError(f"id holds the control character {found[0]!r}. Remove it")
    return str(value)


def _missing(row: Mapping[str, Any], column: str) -> str:
    """What a line without its text has instead."""
    near = get_close_matches(column, [key.lower() for key in row], n=1, cutoff=0.6)
    meant = [key for key in row if key.lower() in near]
    has = f", has {', '.join(map(repr, list(row)[:6]))}" if row else ""
    return f"lacks the field {column}{has}" + (f". Did you mean {meant[0]!r}? It must be `{column}`" if meant else "")


def _transcript(id: str, conversation: Conversation) -> Document:
    """A conversation for people and for the audit: what nobody sees stands there as a mark."""
    text = "\n".join(f"{message.role.capitalize()}: {message.content}" for message in conversation)
    return Document(id, UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text), "", "conversation", {})


# ------------------------------------------------------------------ files
def _rows(file: Path, problems: list[DataProblem], column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their numbers, from 1."""
    try:
        regular, size = file.is_file(), file.stat().st_size
    except (OSError, ValueError):
        regular, size = False, 0  # whoever reads it says why not
    if size > FILE_BYTES:
        raise DataError(DataProblem(str(file), f"has {size} bytes, at most {FILE_BYTES} are read. Use smaller files."))
    if regular and os.access(file, os.R_OK):
        with file.open("rb") as opened:
            if opened.read(len(PARQUET)) == PARQUET:
                return _parquet_rows(file, problems, column)
    return rows_of(content_of(file), file, problems)


def _parquet_rows(file: Path, problems: list[DataProblem], column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a parquet file, a few at a time, of the columns that mean something."""
    import pyarrow as pa  # only who reads such a file waits for it
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            number = total = 0
            for batch in opened.iter_batches(batch_size=64, columns=_columns(opened, file, column)):
                for row in batch.to_pylist():
                    number += 1
                    length = _length(row)
                    total += length
                    if total > FILE_BYTES:  # one page may stand for many rows, whatever the footer says
                        raise DataError(DataProblem(str(file), f"holds more than {FILE_BYTES} characters. Use smaller files."))
                    if length > LINE_BYTES:
                        problems.append(DataProblem(f"{file}:{number}", f"has {length} characters, at most {LINE_BYTES} are read. Use shorter documents."))
                    else:
                        yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(DataProblem(str(file), f"is no whole parquet file: {' '.join(str(error).split())[:200]}. Download or write it again.")) from None


def _columns(opened: "ParquetFile", file: Path, column: str) -> list[str]:
    """The columns that mean something; DataError where there is none, or where the footer says that the table is too large."""
    about, names = opened.metadata, opened.schema_arrow.names
    # Of the footer, before a page is unfolded: a few bytes may stand for gigabytes.
    unfolded = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    if about.num_rows > MOST_ROWS or unfolded > FILE_BYTES:
        said = f"unfolds to {about.num_rows} rows of {unfolded} bytes, at most {MOST_ROWS} rows and {FILE_BYTES} bytes are read"
        raise DataError(DataProblem(str(file), f"{said}. Use smaller files."))
    wanted = [name for name in names if name in (column, "id", *CHAT, *LABELS)]
    if not wanted:
        raise DataError(DataProblem(str(file), f"has no column {column!r}, only {', '.join(map(repr, names[:6]))}. Name its column in `column:`."))
    return wanted


def _length(value: Any) -> int:
    """Characters of all text in a value."""
    if isinstance(value, dict | list):
        return sum(map(_length, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, str) else 0


def _without_null(value: Any) -> Any:
    """An object without the fields that other rows have and this one has not."""
    return {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else value


# ------------------------------------------------------------------ who a text is about
def labelled(document: Document, *, persona: str, names: Collection[str], traits: Traits) -> Document:
    """A text as one of a persona's: what it does not say of itself is read from it.

    Which names of the persona stand in it, and which of its traits: those whose value is one of its words.
    """
    said = set(words(document.text))
    told = document.traits or {category: value for category, value in traits.items() if value.lower() in said}
    carriers = document.carriers or tuple(name for name in names if re.search(rf"\b{re.escape(name)}\b", document.text))
    return replace(document, persona=persona, traits=told, carriers=carriers)


def exchanged(text: str, pairs: Mapping[str, str]) -> str:
    """The text with names in each other's place, in the case in which each of them stands: `{"John": "Sam", "Sam": "John"}`."""
    groups = list(pairs.items())

    def other(match: re.Match[str]) -> str:
        # By its group: a letter such as the long s stands for another one whatever the case, and is not that one in lower case.
        name, found = match[0], groups[(match.lastindex or 1) - 1][1]
        return found.upper() if name.isupper() and len(name) > 1 else found.lower() if name.islower() else found

    return re.sub(rf"\b(?:{'|'.join(f'({re.escape(name)})' for name, _ in groups)})\b", other, text, flags=re.IGNORECASE)


def traded(document: Document, pairs: Mapping[str, str]) -> Document:
    """A document about one rival as one about the other, who has its traits in the swap."""
    carriers = tuple(pairs.get(name, name) for name in document.carriers)
    return replace(document, text=exchanged(document.text, pairs), persona=pairs.get(document.persona, document.persona), carriers=carriers)
