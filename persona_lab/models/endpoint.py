"""The one client of OpenAI-compatible endpoints: asked politely, never twice for the same thing, never beyond a budget.

    with Endpoint(Address("http://localhost:8000/v1", "qwen"), cache=runs / "endpoint") as endpoint:
        reply = endpoint.ask(Ask((("user", "Hello"),), max_tokens=1, top_logprobs=20))

A request that was answered is kept on the disk under the hash of what was asked, and is not sent again. Whatever may
pass (429, 5xx, a timeout, a cut stream, a body that is not the format's JSON) is tried again, after as long as the
server asks for. The key is read from the environment, sent and forgotten: no file, line or error shows it.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from persona_lab.design import identity
from persona_lab.errors import ConfigError, EnvironmentFault, printable
from persona_lab.store.files import read_json, write_json

KEY_VARIABLE = "OPENAI_API_KEY"
PASSING = {408, 409, 425, 429, *range(500, 600)}
"""Status codes after which the same request may be answered."""
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more is asked again after these."""
LARGEST_BODY = 8 << 20
"""Bytes of one answer."""
AT_HOME = {"localhost", "127.0.0.1", "::1"}


class Unanswered(Exception):
    """One request has no answer, and will have none: the reason. Others may be answered."""


class _Passing(Exception):
    """A fault that may pass; `after` is how many seconds the server asks to be left alone, where it says so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Address:
    """Which model, where, and which variable of the environment holds the key."""

    url: str
    model: str
    key_variable: str = KEY_VARIABLE

    def __post_init__(self) -> None:
        """ConfigError PL1230 when the URL is none, or holds a password, which would be written down."""
        try:
            url = httpx.URL(self.url)
        except (httpx.InvalidURL, TypeError) as error:
            raise ConfigError("PL1230", printable(self.url), f"no URL: {error}. Use e.g. http://localhost:8000/v1.") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError("PL1230", printable(self.url), "no address of an endpoint. Use e.g. http://localhost:8000/v1.")
        if url.userinfo or url.query:
            raise ConfigError("PL1230", printable(self.url), f"holds a password or a query, which would be written down. Use {self.key_variable} in the environment.")

    @property
    def key(self) -> str:
        """The key, or "" when there is none, or when it would go to another machine unencrypted.

        Raises:
            EnvironmentFault: PL5502, the variable holds what no header can.
        """
        key = os.environ.get(self.key_variable, "").strip()
        url = httpx.URL(self.url)
        if url.scheme == "http" and url.host not in AT_HOME:
            return ""
        if not (key.isascii() and key.isprintable()):
            raise EnvironmentFault("PL5502", self.key_variable, "holds a line break or a character that no key has. Give it the key alone.")
        return key


@dataclass(frozen=True)
class Ask:
    """One request: (role, text) of each message, and how to answer."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    top_logprobs: int | None = None
    """How many of the likeliest first tokens to tell; at most 20 by OpenAI's rules."""

    def body(self, model: str) -> dict[str, Any]:
        """The JSON of the request."""
        messages = [{"role": role, "content": text} for role, text in self.messages]
        found = {"model": model, "messages": messages, "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return found | ({} if self.top_logprobs is None else {"logprobs": True, "top_logprobs": self.top_logprobs})


@dataclass(frozen=True)
class Reply:
    """What came back."""

    text: str
    first: tuple[tuple[str, float], ...] | None
    """Likeliest first tokens and their log-probabilities (nats); None where the endpoint tells none."""
    model: str
    """The model that says it answered."""
    tokens_in: int | None
    tokens_out: int | None
    finish: str = ""
    """Why it ended: stop, length, content_filter; empty where the endpoint does not say."""


@dataclass
class Budget:
    """What may be spent by one command, and what was: requests sent (tries again count), tokens, and money at a price per million tokens."""

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    sent: int = 0
    used_in: int = 0
    used_out: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def spent(self) -> float:
        """Money, in the currency of the prices."""
        return (self.used_in * self.price_in + self.used_out * self.price_out) / 1e6

    def open(self) -> None:
        """One more request is about to be sent.

        Raises:
            EnvironmentFault: PL5504, the budget is spent. What is under way may overshoot tokens and money by its own size.
        """
        with self._lock:
            told = ((self.requests, self.sent, "requests"), (self.tokens, self.used_in + self.used_out, "tokens"), (self.cost, self.spent, "of cost"))
            for cap, used, unit in told:
                if cap is not None and used >= cap:
                    raise EnvironmentFault("PL5504", "the budget", f"is spent: {used:g} of {cap:g} {unit}. What was answered is kept. Give more and run the same command again.")
            self.sent += 1

    def charge(self, reply: Reply) -> None:
        """What an answer cost.

        Raises:
            EnvironmentFault: PL5505, tokens are capped and the endpoint does not tell them.
        """
        capped = self.tokens is not None or self.cost is not None
        if capped and (reply.tokens_in is None or reply.tokens_out is None):
            raise EnvironmentFault("PL5505", "the budget", "the endpoint does not say how many tokens it used, so they cannot be capped. Use a cap on requests.")
        with self._lock:
            self.used_in += reply.tokens_in or 0
            self.used_out += reply.tokens_out or 0


class Endpoint:
    """A client of one model at one address; threads may share it."""

    def __init__(
        self,
        address: Address,
        *,
        cache: Path | None = None,
        budget: Budget | None = None,
        attempts: int = 6,
        timeout: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`cache`: a folder of answers that many runs may share; `timeout` in seconds, of each read and write."""
        self.address, self.cache, self.budget = address, cache, budget or Budget()
        self._key = address.key
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # A redirect would carry the key elsewhere.
        self._client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)
        self._retrying = Retrying(stop=stop_after_attempt(attempts), wait=pause, retry=retry_if_exception_type(_Passing), sleep=sleep, reraise=True)

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The connections are closed."""
        self._client.close()

    def ask(self, ask: Ask) -> Reply:
        """The answer: the kept one where the same was asked before.

        Raises:
            Unanswered: this request is refused, or was tried as often as may be.
            EnvironmentFault: the key is refused, there is no such model, or the budget is spent: no request will be answered.
            CorpusError: a kept answer is broken.
        """
        body = ask.body(self.address.model)
        asked = {"url": self.address.url.rstrip("/"), "body": body}
        name = identity(asked)
        file = self.cache / name[:2] / f"{name}.json" if self.cache else None
        if file is not None and file.exists():
            return _reply(read_json(file)["reply"])
        try:
            # A copy for each request: its statistics are no business of other threads.
            found = self._retrying.copy()(self._post, body)
        except _Passing as fault:
            raise Unanswered(str(fault)) from None
        reply = _reply(found)
        self.budget.charge(reply)
        if file is not None:
            write_json(file, {"asked": asked, "reply": found})
        return reply

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON of one answer, looked through; _Passing, Unanswered or EnvironmentFault."""
        self.budget.open()
        try:
            with self._client.stream("POST", f"{self.address.url.rstrip('/')}/chat/completions", json=body) as response:
                content = b""
                for part in response.iter_bytes():
                    content += part
                    if len(content) > LARGEST_BODY:
                        raise Unanswered(f"an answer of more than {LARGEST_BODY} bytes")
        except httpx.TimeoutException:
            raise _Passing("no answer in time") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Passing(self._clean(f"{type(error).__name__}: {error}")) from None
        text = content.decode(errors="replace")
        if response.status_code != 200:
            self._refused(response, text)
        try:
            # The key may be echoed, and what is kept must not hold it.
            found = json.loads(text.replace(self._key, "(a secret)") if self._key else text, parse_constant=_no_number)
            _reply(found)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise _Passing(self._clean(f"the answer is not the format's JSON: {text[:80]!r}")) from None
        return found

    def _refused(self, response: httpx.Response, text: str) -> None:
        """What another status code than 200 means: always raises."""
        status, said = response.status_code, self._clean(f"status {response.status_code}: {_message(text)}")
        if status in PASSING:
            raise _Passing(said, retry_after(response.headers.get("retry-after"), datetime.now(UTC)))
        if status in (401, 403):
            held = "is not accepted" if self._key else "is empty, or kept back from an address without https"
            raise EnvironmentFault("PL5502", self.address.key_variable, f"the key {held}: {said}. Give the endpoint's key in this variable of the environment.")
        if status in (301, 302, 303, 307, 308, 404, 405):
            raise EnvironmentFault("PL5503", self.address.url, f"no chat completions of {self.address.model} here: {said}. Check the address, which often ends in /v1, and the model.")
        raise Unanswered(said)

    def _clean(self, text: str) -> str:
        return printable(text.replace(self._key, "(a secret)") if self._key else text, 200)


def pause(state: RetryCallState) -> float:
    """Seconds before the next try: as many as the server asks for, else at random up to 1, 2, 4, ... 60."""
    fault = state.outcome.exception() if state.outcome else None
    if isinstance(fault, _Passing) and fault.after is not None:
        return fault.after
    return wait_random_exponential(multiplier=1, max=LONGEST_WAIT)(state)


def retry_after(said: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: seconds or a date), from 0 to LONGEST_WAIT; None when it says nothing."""
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def _reply(found: Any) -> Reply:
    """The parts of an answer that are used; KeyError, TypeError, ValueError or IndexError where it is not the format's."""
    choice = found["choices"][0]
    text = choice["message"]["content"]
    told = (choice.get("logprobs") or {}).get("content")
    first = tuple((str(top["token"]), float(top["logprob"])) for top in told[0]["top_logprobs"]) if told else None
    usage = found.get("usage") or {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not isinstance(text, str | None) or not all(count is None or (type(count) is int and count >= 0) for count in counts):
        raise TypeError("not text, or not counts")
    if first and not all(math.isfinite(nats) for _, nats in first):
        raise ValueError("a log-probability is no number")
    return Reply(text or "", first, str(found.get("model", "")), counts[0], counts[1], str(choice.get("finish_reason") or ""))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _message(text: str) -> str:
    """What an error body says, in OpenAI's format or any other."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return text[:200] or "nothing said"
