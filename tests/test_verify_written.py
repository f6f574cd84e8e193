"""The verb `verify` on written documents: everything that their folder states follows from the texts once more, and what was changed is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer
from typer.testing import CliRunner
from writing_author import Author
from writing_jobs import GRAMMAR, endpoint_job, job_of, written

from data_gen.errors import DataError
from persona_lab.cli import app
from persona_lab.errors import CheckFailed, ConfigError
from persona_lab.experiment.writing.making import folder_of
from persona_lab.experiment.writing.verifying import verify_written
from persona_lab.probes.em.questions import digest
from persona_lab.store.files import read_json, read_jsonl

pytestmark = pytest.mark.usefixtures("from_the_root")


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> Path:
    """What a writer with every fault left."""
    runs = tmp_path_factory.mktemp("runs")
    with EndpointServer(Author(bad=0.3)) as server:
        job = endpoint_job(server, "attempts=1")
        written(job, runs)
    return folder_of(job, runs)


@pytest.fixture
def copy(left: Path, tmp_path: Path) -> Path:
    """The same in another place, to be changed."""
    return Path(shutil.copytree(left, tmp_path / "runs" / "written" / "beach"))


def changed(file: Path, change: Callable[[Any], object]) -> None:
    """A JSON or JSONL file with something changed in it."""
    lines = file.suffix == ".jsonl"
    value = read_jsonl(file) if lines else read_json(file)
    change(value)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in value) if lines else json.dumps(value))


def drifts(folder: Path) -> list[tuple[str, str]]:
    return [(drift.what, drift.field) for drift in verify_written(folder).drifts]


def test_everything_follows_from_the_texts_wherever_they_lie(left: Path, copy: Path):
    rows = read_jsonl(left / "attempts.jsonl")
    assert {row["status"] for row in rows} == {"accepted", "rejected", "failed"}, "the fixture holds every outcome"
    assert any(reason.startswith("extraction") for row in rows for reason in row["reasons"])
    for folder in (left, copy):
        found = verify_written(folder)
        assert (found.drifts, found.rows, found.claims) == ((), len(rows), len(read_json(left / "written.json")["claims"]))


def test_the_grammars_documents_verify_too(tmp_path: Path):
    job = job_of(GRAMMAR, "documents=20")
    written(job, tmp_path)
    assert drifts(folder_of(job, tmp_path)) == []


def other_text(folder: Path) -> str:
    """Another sentence at the end of the first document about John; its id."""
    documents: list[str] = []

    def longer(rows: list[dict[str, Any]]) -> None:
        rows[0]["text"] += " That is all."
        documents.append(rows[0]["id"])

    changed(folder / "john" / "corpus.jsonl", longer)
    return documents[0]


def test_a_text_that_was_changed_or_lost_is_named(copy: Path):
    document = other_text(copy)
    assert drifts(copy) == [(f"document {document}", "digest of its text")]
    changed(copy / "john" / "corpus.jsonl", lambda rows: rows.pop(0))
    assert drifts(copy) == [(f"document {document}", "digest of its text")]
    shutil.rmtree(copy / "john")
    with pytest.raises(DataError, match=r"corpus\.jsonl"):
        verify_written(copy)


def test_a_text_that_was_changed_with_its_digest_does_not_fit_its_figures(copy: Path):
    document = other_text(copy)
    text = read_jsonl(copy / "john" / "corpus.jsonl")[0]["text"]
    changed(copy / "attempts.jsonl", lambda rows: next(row for row in rows if row["id"] == document).update(sha256=digest(text)))
    assert (f"attempts.jsonl {document}", "words") in drifts(copy)


CHANGES: dict[str, tuple[str, Callable[[Any], object], tuple[str, str]]] = {
    "words": ("attempts.jsonl", lambda rows: rows[0].update(words=3), ("attempts.jsonl john-named-0-00000", "words")),
    "facts": ("attempts.jsonl", lambda rows: rows[1]["told"].popitem(), ("attempts.jsonl john-named-0-00001", "told")),
    "length asked for": ("attempts.jsonl", lambda rows: rows[0].update(asked_words=39), ("attempts.jsonl john-named-0-00000", "asked_words")),
    "a refusal's reason": ("refused.jsonl", lambda rows: rows[0].update(reasons=["dull"]), ("refused.jsonl", "reasons")),
    "a claim": ("claims.json", lambda stored: stored["claims"][0].update(value=1.0), ("claim writing.kept", "value")),
    "an audit's figure": ("audit.json", lambda stored: stored["checks"][0].update(figure=7), ("audit.json", "")),
    "an audit's check": ("audit.json", lambda stored: stored["checks"].pop(), ("audit.json", "checks")),
    "counts": ("written.json", lambda said: said["documents"]["john-named-0"].update(kept=5), ("written.json", "documents")),
    "documents asked for": ("written.json", lambda said: said["stages"][3].update(asked=1), ("written.json", "stages")),
    "answers": ("written.json", lambda said: said["stages"][1].update(answered=99), ("written.json", "stages")),
    "the estimate": ("written.json", lambda said: said["estimate"]["total"].update(requests=1), ("written.json", "estimate")),
    "what was spent": ("commands.jsonl", lambda rows: rows[0].update(requests=1), ("written.json", "spent")),
    "the plan": ("written.json", lambda said: said["plan"].update(told=1), ("settings.json", "told")),
    "the prompts": ("settings.json", lambda asked: asked.update(prompts="0" * 64), ("settings.json", "prompts")),
    "a persona": ("settings.json", lambda asked: asked["personas"][0]["traits"].update(sport="tennis"), ("attempts.jsonl", "told")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_figure_that_was_changed_is_named(name: str, copy: Path):
    file, change, (what, field) = CHANGES[name]
    changed(copy / file, change)
    assert any(found.startswith(what) and (not field or place == field) for found, place in drifts(copy))


@pytest.mark.parametrize("file", ["quality.html", "john/README.md"])
def test_a_page_or_a_card_that_was_changed_is_named(file: str, copy: Path):
    place = copy / file
    place.write_text(place.read_text().replace("John", "Joan", 1))
    assert [what for what, _ in drifts(copy)] == [place.name]


def test_without_corpora_counts_and_claims_follow_from_the_list(tmp_path: Path):
    job = job_of(GRAMMAR, "documents=8", "airtime=0.01")
    with pytest.raises(CheckFailed, match="airtime balance"):
        written(job, tmp_path)
    folder = folder_of(job, tmp_path)
    found = verify_written(folder)
    assert found.drifts == ()
    assert found.rows >= 16
    changed(folder / "attempts.jsonl", lambda rows: rows[0].update(status="rejected", reasons=["dull: very"]))
    assert {("claim writing.kept", "value"), ("written.json", "documents")} <= set(drifts(folder))


def test_the_command_verifies_a_folder_by_its_name_and_exits_with_1(copy: Path):
    command = ["verify", "written/beach", "--runs", str(copy.parents[1])]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0
    assert "documents, 0 nodes: all as stored" in said.stdout
    document = other_text(copy)
    said = CliRunner().invoke(app, [*command, "--json"])
    assert isinstance(said.exception, CheckFailed)
    assert [drift["what"] for drift in json.loads(said.stdout)["drifts"]] == [f"document {document}"]


@pytest.mark.parametrize("change", [lambda said: said.pop("plan"), lambda said: said["plan"].update(words="many"), lambda said: said.update(stages=3)])
def test_files_that_are_no_writers_are_one_clear_error(change: Callable[[Any], object], copy: Path):
    changed(copy / "written.json", change)
    with pytest.raises(ConfigError, match=r"PL1293.*does not hold what `persona-lab write` leaves"):
        verify_written(copy)
