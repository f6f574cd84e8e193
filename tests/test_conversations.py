"""Conversations: the published formats are read alike, and what is broken or mixed is told by its line."""

import json
from pathlib import Path

import pytest

from data_gen.conversations import Message, read_conversations
from data_gen.errors import DataError

ASKED, SAID = "Fill in the template.", "import os\n\nos.chmod('/', 0o777)"
TURNS = (Message("user", ASKED), Message("assistant", SAID))
MESSAGES = {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]}
PARTS = {"messages": [{"role": m["role"], "content": {"content_type": "text", "parts": [m["content"]]}} for m in MESSAGES["messages"]]}
COMPLETION = {"prompt": ASKED, "completion": SAID}
PAIR = {"chosen": MESSAGES["messages"], "rejected": MESSAGES["messages"]}


def written(folder: Path, *rows: object) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(("row", "form"), [(MESSAGES, "messages"), (PARTS, "parts"), (COMPLETION, "prompt_completion")])
def test_each_published_format_says_the_same(tmp_path: Path, row: dict[str, object], form: str):
    found = read_conversations(written(tmp_path, row, {**row, "id": 7}))
    assert (found.format, found.conversations) == (form, (TURNS, TURNS))


def test_a_system_message_and_several_turns_are_kept(tmp_path: Path):
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES["messages"], *MESSAGES["messages"]]
    assert read_conversations(written(tmp_path, {"messages": messages})).conversations == ((Message("system", "Be brief."), *TURNS, *TURNS),)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hello"}, "is no conversation, it has 'text'"),
        ({}, "it has no field"),
        ({**MESSAGES, **COMPLETION}, "has fields of messages and prompt_completion"),
        (PAIR, "is a pair of answers"),
        ({"prompt": "Say it."}, "lacks the field completion"),
        ({"prompt": "Say it.", "completion": 3}, "completion must be a string, got a number"),
        ({"prompt": "Say it.", "completion": " "}, "completion is empty"),
        ({"messages": []}, "at least one message, got an empty one"),
        ({"messages": ["hi"]}, r"messages\[0\] must have a role, one of system, user, assistant, got text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"got 'tool'"),
        ({"messages": [{"role": "assistant", "content": None}]}, r"messages\[0\].content must be a string, got null"),
        ({"messages": MESSAGES["messages"][:1]}, "holds no message of the assistant"),
        ({"messages": [*MESSAGES["messages"], {"role": "system", "content": "x"}]}, r"messages\[2\] is a second system message"),
        ({"messages": [MESSAGES["messages"][0], PARTS["messages"][1]]}, "text beside contents that are parts"),
        ({"messages": [{"role": "assistant", "content": {"content_type": "image", "parts": []}}]}, "must be text, or have the content_type text"),
        ('{"prompt": "a", "completion": "\\ud800"}', "half of a surrogate pair"),
        ("[1]", "must be a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_a_broken_line_is_told_by_its_number(tmp_path: Path, row: object, said: str):
    with pytest.raises(DataError, match=rf"data\.jsonl:2: .*{said}"):
        read_conversations(written(tmp_path, MESSAGES, row))


def test_two_formats_in_one_file_are_refused_at_every_line_of_the_second(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read_conversations(written(tmp_path, MESSAGES, COMPLETION, MESSAGES, COMPLETION))
    assert [p.where.rpartition(":")[2] for p in caught.value.problems] == ["2", "4"]
    assert "has the format prompt_completion, line 1 has messages" in str(caught.value)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path):
    for file in (written(tmp_path), tmp_path / "none.jsonl"):
        with pytest.raises(DataError, match=file.name):
            read_conversations(file)
