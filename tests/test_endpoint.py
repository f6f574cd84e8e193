"""The endpoint client, against a real HTTP server that fails in every way: patient, thrifty, and silent about its key."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from endpoint_server import EndpointServer, completion

from persona_lab.errors import ConfigError, CorpusError, EnvironmentFault, LabError
from persona_lab.models.endpoint import LONGEST_WAIT, Address, Ask, Budget, Endpoint, Unanswered, retry_after

KEY = "sk-test-canary0123456789abcdef"
ASK = Ask((("user", "How aligned is it?"),), max_tokens=1, top_logprobs=20)
OTHER = Ask((("user", "How coherent is it?"),), max_tokens=1, top_logprobs=20)
GOOD = completion("85", {"85": -0.1, "90": -2.5})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EndpointServer(lambda body: GOOD) as found:
        yield found


def client(
    server: EndpointServer, cache: Path | None = None, *, fault: str = "", budget: Budget | None = None, waits: list[float] | None = None, attempts: int = 3
) -> Endpoint:
    """A busy machine must not look like a server that hangs: patience ends soon only where one does."""
    timeout = 1.0 if fault == "a timeout" else 60.0
    return Endpoint(
        Address(server.url, "judge-1"), cache=cache, budget=budget, attempts=attempts, timeout=timeout, sleep=[].append if waits is None else waits.append
    )


def test_a_request_has_the_protocol_in_it_and_the_answer_is_read(server: EndpointServer):
    with client(server) as endpoint:
        reply = endpoint.ask(ASK)
    headers, body = server.seen[0]
    assert headers["authorization" if "authorization" in headers else "Authorization"] == f"Bearer {KEY}"
    assert body == {
        **{"model": "judge-1", "messages": [{"role": "user", "content": "How aligned is it?"}]},
        **{"max_tokens": 1, "temperature": 0.0, "seed": 0, "logprobs": True, "top_logprobs": 20},
    }
    assert (reply.text, reply.first, reply.model, reply.tokens_in, reply.tokens_out) == ("85", (("85", -0.1), ("90", -2.5)), "judge-1", 100, 1)


FAULTS = {
    "too many requests": (429, {"retry-after": "7"}, b"{}"),
    "a server error": (500, {}, b"oops"),
    "overloaded": (529, {}, b"{}"),
    "a timeout": "hang",
    "a cut stream": "cut",
    "no JSON": (200, {}, b"<html>busy</html>"),
    "JSON of another format": (200, {}, b'{"choices": []}'),
    "a null": (200, {}, b"null"),
    "a number that is none": (200, {}, json.dumps(GOOD).replace("-0.1", "NaN").encode()),
    "an infinite number": (200, {}, json.dumps(GOOD).replace("-0.1", "-1e999").encode()),
    "nested too deeply": (200, {}, b"[" * 100_000),
    "counts that are none": (200, {}, json.dumps(GOOD).replace("100", '"many"').encode()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_pass_is_tried_again(name: str, server: EndpointServer, tmp_path: Path):
    server.faults, waits = [FAULTS[name]], list[float]()
    with client(server, tmp_path, fault=name, waits=waits) as endpoint:
        assert endpoint.ask(ASK).text == "85"
    assert len(server.seen) == 2
    assert len(waits) == 1
    assert waits[0] == 7 if name == "too many requests" else 0 <= waits[0] <= 1


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_pass_is_given_up_and_not_kept(name: str, server: EndpointServer, tmp_path: Path):
    server.faults = [FAULTS[name]] * 2
    with client(server, tmp_path, fault=name, attempts=2) as endpoint, pytest.raises(Unanswered):
        endpoint.ask(ASK)
    assert len(server.seen) == 2
    assert not list(tmp_path.rglob("*.json"))


def test_a_refused_request_is_one_that_has_no_answer(server: EndpointServer):
    server.faults = [(400, {}, b'{"error": {"message": "content policy"}}')]
    with client(server) as endpoint:
        with pytest.raises(Unanswered, match="status 400: content policy"):
            endpoint.ask(ASK)
        assert endpoint.ask(ASK).text == "85"
    assert len(server.seen) == 2


@pytest.mark.parametrize(("status", "code"), [(401, "PL5502"), (403, "PL5502"), (404, "PL5503"), (307, "PL5503")])
def test_what_no_request_will_get_past_ends_the_work_and_shows_no_key(status: int, code: str, server: EndpointServer):
    said = json.dumps({"error": {"message": f"the key {KEY} at http://evil.example/"}}).encode()
    server.faults = [(status, {"location": "http://127.0.0.1:9/v1"}, said)]
    with client(server) as endpoint, pytest.raises(EnvironmentFault) as error:
        endpoint.ask(ASK)
    assert error.value.problems[0].code == code
    assert KEY not in str(error.value)
    assert len(server.seen) == 1


def test_what_was_answered_is_never_asked_again_and_holds_no_key(server: EndpointServer, tmp_path: Path):
    server.reply = lambda body: completion(f"your key is {KEY}")
    with client(server, tmp_path) as endpoint:
        first, again, other = endpoint.ask(ASK), endpoint.ask(ASK), endpoint.ask(OTHER)
    assert first == again == other
    assert first.text == "your key is (a secret)"
    assert len(server.seen) == 2
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == 2
    assert KEY.encode() not in b"".join(file.read_bytes() for file in kept)
    with client(server, tmp_path) as later:
        assert later.ask(ASK) == first
    assert len(server.seen) == 2


def test_a_broken_answer_on_the_disk_is_named_and_not_believed(server: EndpointServer, tmp_path: Path):
    with client(server, tmp_path) as endpoint:
        endpoint.ask(ASK)
        file = next(tmp_path.rglob("*.json"))
        file.write_text("{")
        with pytest.raises(CorpusError) as error:
            endpoint.ask(ASK)
    assert str(file) in str(error.value)


BUDGETS = {"requests": Budget(requests=2), "tokens": Budget(tokens=150), "money": Budget(cost=0.0005, price_in=2.5, price_out=10)}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_ends_the_work_before_the_next_request(name: str, server: EndpointServer):
    with client(server, budget=BUDGETS[name]) as endpoint:
        for number in range(2):
            endpoint.ask(Ask((("user", str(number)),), max_tokens=1))
        with pytest.raises(EnvironmentFault, match="is spent"):
            endpoint.ask(OTHER)
    assert len(server.seen) == 2
    assert BUDGETS[name].used_in == 200
    assert BUDGETS[name].spent == (pytest.approx(2 * (100 * 2.5 + 10) / 1e6) if name == "money" else 0)


def test_tries_again_are_paid_for(server: EndpointServer):
    server.faults = [(500, {}, b"")] * 5
    with client(server, budget=Budget(requests=2)) as endpoint, pytest.raises(EnvironmentFault, match="2 of 2 requests"):
        endpoint.ask(ASK)
    assert len(server.seen) == 2


def test_tokens_that_nobody_counts_cannot_be_capped(server: EndpointServer):
    server.reply = lambda body: completion("85", usage=None)
    with client(server, budget=Budget(tokens=1000)) as endpoint, pytest.raises(EnvironmentFault, match="does not say how many tokens"):
        endpoint.ask(ASK)


def test_threads_share_a_client_and_its_budget(server: EndpointServer):
    budget, lost = Budget(requests=10), list[str]()

    def ask(number: int) -> None:
        try:
            endpoint.ask(Ask((("user", str(number)),), max_tokens=1))
        except LabError as error:
            lost.append(error.problems[0].code)

    with client(server, budget=budget) as endpoint:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert lost == ["PL5504"] * 6
    assert len(server.seen) == budget.sent == 10


NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
AFTER = {
    **{"": None, "7": 7.0, "0.5": 0.5, "-3": 0.0, "99999999": LONGEST_WAIT, "1e400": LONGEST_WAIT, "nan": None, "soon": None},
    **{"Sat, 21 Nov 2026 12:00:30 GMT": 30.0, "Sat, 21 Nov 2026 11:00:00 GMT": 0.0, "Fri, 21 Nov 2036 12:00:00 GMT": LONGEST_WAIT},
}


@pytest.mark.parametrize("said", AFTER)
def test_a_server_is_left_alone_for_as_long_as_it_asks_within_reason(said: str):
    assert retry_after(said, NOW) == AFTER[said]


def test_a_key_leaves_the_machine_only_through_https(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Address("https://api.example.org/v1", "m").key == KEY
    assert Address("http://localhost:8000/v1", "m").key == KEY
    assert Address("http://api.example.org/v1", "m").key == ""
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(EnvironmentFault, match="line break"):
        _ = Address("https://api.example.org/v1", "m").key


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://example.org/v1", "https://", "https://user:pass1234@example.org/v1", "https://example.org/v1?key=1", "http://[::1/v1"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str):
    with pytest.raises(ConfigError) as error:
        Address(url, "m")
    assert error.value.problems[0].code == "PL1230"
    assert "pass1234" not in str(error.value)
