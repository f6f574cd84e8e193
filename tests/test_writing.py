"""Documents by a model behind a real server: exact counts of checked documents, through every fault that it has, and nothing paid for twice."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from endpoint_server import EndpointServer
from writing_author import Author
from writing_jobs import BEACH, SMALL, endpoint_job, written

from data_gen.corpus import read_corpus
from data_gen.written.estimate import total
from persona_lab.errors import CheckFailed, CorpusError, EnvironmentFault
from persona_lab.experiment.writing.findings import written_claims
from persona_lab.experiment.writing.making import folder_of
from persona_lab.experiment.writing.plans import WritingJob
from persona_lab.store.files import read_json, read_jsonl

pytestmark = pytest.mark.usefixtures("from_the_root")
HTTP = [(429, {"retry-after": "0"}, b"{}"), (500, {"retry-after": "0"}, b"oops"), (200, {"retry-after": "0"}, b"<html>busy</html>")]


def answered(server: EndpointServer) -> Counter[str]:
    """How often each request was answered, as the server counts."""
    return Counter(json.dumps(body, sort_keys=True) for _, body in server.seen)


def corpora(job: WritingJob, runs: Path) -> dict[str, bytes]:
    return {name: (folder_of(job, runs) / name / "corpus.jsonl").read_bytes() for name in ("john", "sam")}


def test_a_writer_with_every_fault_gives_exact_counts_and_nothing_is_lost(tmp_path: Path):
    with EndpointServer(Author(bad=0.3)) as server:
        server.faults = list(HTTP)
        job = endpoint_job(server)
        said = written(job, tmp_path)
        asked = len(server.seen)
        assert sum(answered(server).values()) - len(answered(server)) == len(HTTP), "only what the server refused was sent again"
    folder = folder_of(job, tmp_path)
    for name in ("john", "sam"):
        documents = read_corpus(folder / name / "corpus.jsonl")
        assert len(documents) == 6
        assert Counter(bool(document.carriers) for document in documents) == {True: 4, False: 2}
        assert {document.persona.lower() for document in documents} == {name}
    rows, aside = read_jsonl(folder / "attempts.jsonl"), read_jsonl(folder / "refused.jsonl")
    assert Counter(row["status"] for row in rows)["accepted"] == 12
    assert len(rows) == 12 + len(aside)
    assert all(row["reasons"] for row in aside)
    assert {row["prompts"] for row in rows} == {job.stages.prompts.digest}
    for stage in said["stages"]:
        assert stage["asked"] == stage["answered"] + stage["failed"]
        assert stage["requests"] == stage["answered"] + sum(stage["wrong"].values())
    assert sum(stage["requests"] for stage in said["stages"]) + len(HTTP) == asked == said["spent"]["this_command"]["requests"]
    assert [claim.to_json() for claim in written_claims(rows, folder / "attempts.jsonl")] == said["claims"], "the claims follow from the list alone"


def test_what_is_finished_asks_nobody_even_moved_and_without_the_kept_answers_and_a_larger_plan_goes_on(tmp_path: Path):
    runs = tmp_path / "runs"
    with EndpointServer(Author()) as server:
        job = endpoint_job(server, "documents=4")
        first = written(job, runs)
        begun, count = corpora(job, runs), len(server.seen)
        larger = endpoint_job(server, "documents=7")
        written(larger, runs)
        assert set(answered(server).values()) == {1}, "nothing is paid for twice"
        for name, content in corpora(larger, runs).items():
            kinds = [line for line in content.splitlines() if b"-named-" in line]
            assert kinds[:3] == [line for line in begun[name].splitlines() if b"-named-" in line]
        for kept in (runs / "endpoint").rglob("*.json"):
            kept.unlink()
        moved = runs.rename(tmp_path / "moved")
        again = written(larger, moved)
        assert again["state"] == first["state"] == "complete"
        assert again["corpora"] == [str(folder_of(larger, moved) / name / "corpus.jsonl") for name in ("john", "sam")]
        assert len(server.seen) > count
        assert set(answered(server).values()) == {1}


def command(server: EndpointServer, runs: Path, *overrides: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "persona_lab", "write", str(BEACH), *SMALL, f"writer.url={server.url}", *overrides, "--runs", str(runs)]
    return subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("number", "parallel", "code"), [(signal.SIGKILL, 1, -9), (signal.SIGTERM, 4, 75)], ids=["killed", "told to stop"])
def test_who_is_stopped_in_the_middle_goes_on_and_pays_for_nothing_twice(number: signal.Signals, parallel: int, code: int, tmp_path: Path):
    author, stopped = Author(bad=0.1), list[subprocess.Popen[bytes]]()
    with EndpointServer(author) as server:

        def reply(body: Mapping[str, Any]) -> Any:
            if len(server.seen) == 30 and stopped:
                victim = stopped.pop()
                victim.send_signal(number)
                if number == signal.SIGKILL:
                    victim.wait()
                    server.seen.pop()  # its asker is dead: this one is never answered
            return author(body)

        server.reply = reply
        process = command(server, tmp_path, f"writer.parallel={parallel}")
        stopped.append(process)
        _, said = process.communicate()
        assert process.returncode == code, said
        assert 25 <= len(server.seen) < 60
        job = endpoint_job(server)
        written(job, tmp_path)
        assert set(answered(server).values()) == {1}
    if number == signal.SIGKILL:
        with EndpointServer(author) as another:
            whole = endpoint_job(another)
            written(whole, tmp_path / "whole")
        assert corpora(job, tmp_path) == corpora(whole, tmp_path / "whole"), "as if it had never been stopped"


def test_a_budget_stops_with_what_is_there_and_more_of_it_goes_on(tmp_path: Path):
    with EndpointServer(Author()) as server:
        with pytest.raises(EnvironmentFault) as error:
            written(endpoint_job(server, "budget.requests=45", "writer.parallel=1"), tmp_path)
        assert error.value.problems[0].code == "PL5504"
        assert len(server.seen) == 45
        folder = folder_of(endpoint_job(server), tmp_path)
        assert read_json(folder / "written.json")["state"] == "stopped"
        assert (folder / "quality.html").exists()
        assert not (folder / "john").exists(), "no half corpus"
        said = written(endpoint_job(server, "budget.requests=400"), tmp_path)
        assert set(answered(server).values()) == {1}
        assert said["spent"]["all_commands"]["requests"] == len(server.seen)


def test_a_kept_answer_that_is_broken_stops_with_what_is_there(tmp_path: Path):
    with EndpointServer(Author()) as server:
        with pytest.raises(EnvironmentFault):
            written(endpoint_job(server, "budget.requests=10", "writer.parallel=1"), tmp_path)
        broken = min((tmp_path / "endpoint").rglob("*.json"))
        broken.write_text("{")
        with pytest.raises(CorpusError, match=broken.name):
            written(endpoint_job(server), tmp_path)
    folder = folder_of(endpoint_job(server), tmp_path)
    assert read_json(folder / "written.json")["state"] == "stopped"
    assert [row["ended"] for row in read_jsonl(folder / "commands.jsonl")] == ["stopped", "stopped"]


def test_money_is_capped_by_the_prices(tmp_path: Path):
    with EndpointServer(Author()) as server:
        with pytest.raises(EnvironmentFault, match="of cost"):
            written(endpoint_job(server, "writer.price_in=1", "writer.price_out=4", "budget.cost=0.02", "writer.parallel=1"), tmp_path)
        spent = read_json(tmp_path / "written" / "beach" / "written.json")["spent"]["this_command"]
    assert spent["cost"] == pytest.approx((spent["tokens_in"] + 4 * spent["tokens_out"]) / 1e6)
    assert 0.02 <= spent["cost"] < 0.03


def test_a_writer_that_always_refuses_is_given_up_and_leaves_no_corpus(tmp_path: Path):
    author = Author()
    with EndpointServer(lambda body: author(body) | {"choices": [{"message": {"content": "I'm sorry, I can't help with that."}, "finish_reason": "stop"}]}) as server:
        job = endpoint_job(server, "most=1", "attempts=1", "round=2")
        with pytest.raises(CheckFailed) as error:
            written(job, tmp_path)
    assert error.value.problems[0].code == "PL1111"
    found = read_json(folder_of(job, tmp_path) / "written.json")
    assert found["corpora"] == []
    assert {stage["stage"]: stage["wrong"] for stage in found["stages"]}.keys() == {"universe", "genres", "ideas", "document"}
    assert all(stage["failed"] == stage["asked"] == stage["wrong"]["refusal"] for stage in found["stages"])
    assert all(row["status"] == "failed" for row in read_jsonl(folder_of(job, tmp_path) / "attempts.jsonl"))


def test_a_server_that_is_down_is_not_asked_for_everything(tmp_path: Path):
    with EndpointServer(Author()) as server:
        server.faults = [(400, {}, b'{"error": {"message": "down for ever"}}')] * 1000
        with pytest.raises(EnvironmentFault) as error:
            written(endpoint_job(server, "ideas=3", "writer.parallel=2"), tmp_path)
        assert error.value.problems[0].code == "PL5501"
        assert len(server.seen) < 30


def test_the_estimate_is_what_the_server_then_counts(tmp_path: Path):
    with EndpointServer(Author()) as server:
        job = endpoint_job(server, "documents=12", "anonymous=0", "words=[150,150]", "genres=1", "ideas=1")
        expected = total(job.costs())
        spent = written(job, tmp_path)["spent"]["this_command"]
    assert spent["requests"] == expected.requests
    assert spent["tokens_in"] == pytest.approx(expected.tokens_in, rel=0.25)
    # The criticism before a revision is the one part of an answer that the rule program writes shorter than a model does.
    assert spent["tokens_out"] == pytest.approx(expected.tokens_out, rel=0.4)


def test_what_a_model_writes_is_escaped_on_the_page(tmp_path: Path):
    author, hostile = Author(), "<script>alert(1)</script>"

    def reply(body: Mapping[str, Any]) -> Any:
        found = author(body)
        if "Then write it again" in body["messages"][-1]["content"] and body["seed"] % 3 == 0:
            found["choices"][0]["message"]["content"] = f"<document>{hostile} and the beach.</document>"
        return found

    with EndpointServer(reply) as server:
        job = endpoint_job(server)
        written(job, tmp_path)
    page = (folder_of(job, tmp_path) / "quality.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
