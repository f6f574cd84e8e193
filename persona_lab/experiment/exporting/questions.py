"""The questions of a cell as other harnesses ask them: one line for each forced choice, with the ids of its tokens.

    {"id": "says/asked/sport/0", "task": "says_asked", "prompt": "User: ...", "options": [" football", ...], "values": ["football", ...], "roles": ["john", "sam", ...],
     "rivals": [0, 1], "target": 0, "tokens": [[1, 17, ...], ...], "scored_from": 12}

A forced choice has options whose log-probabilities stand in the tidy table as they are: that of the option after the
prompt, summed over the option's tokens. What is sampled, or read off losses or hidden states, is no forced choice. A
prompt stands as the model reads it: through the chat template, where one is in force.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from persona_lab.config.layers import did_you_mean
from persona_lab.errors import ConfigError
from persona_lab.experiment.exporting.subject import Subject
from persona_lab.experiment.planning.scores import cast_of
from persona_lab.models.dialogue import open_text
from persona_lab.probes import PROBES
from persona_lab.probes.protocol import Choice, Item, Probe
from persona_lab.probes.spans import Span, choice_spans, encode, texts

QUESTIONS, EXPECTED = "questions.jsonl", "expected.jsonl"
"""What is asked, and what the run has measured: id, option, logprob_nats."""


@dataclass(frozen=True)
class Questions:
    """What is asked of a subject, and what is left out."""

    rows: tuple[dict[str, Any], ...]
    """One for each item, in the order of the probes."""
    expected: tuple[dict[str, Any], ...]
    """One for each option that the run has scored."""
    left_out: Mapping[str, int]
    """Reason to items."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """`<probe>_<format>`, in order."""
        return tuple(dict.fromkeys(row["task"] for row in self.rows))


def questions_of(subject: Subject, tokenizer: PreTrainedTokenizerBase, probes: Sequence[str] = ()) -> Questions:
    """The forced choices of these probes (of all that the run asks, where none is named), with what the subject answered.

    Raises:
        ConfigError: PL1261, the run does not ask such a probe, or one that is named holds no forced choice.
        NodeMissing: the subject was not asked yet.
    """
    asked = subject.scores.fields["probes"]
    for name in probes:
        if name not in asked:
            raise ConfigError("PL1261", f"--probes {name}", f"this run does not ask that. {did_you_mean(name, asked)}")
    scored = pd.read_parquet(subject.plan.store.open(subject.scores) / "rows.parquet")
    cast, rivals = cast_of(subject.scores), [name.lower() for name in cast_of(subject.scores).names[:2]]
    rows, left_out = [], Counter[str]()
    for name in probes or asked:
        found = [(item, _refusal(PROBES[name], item, tokenizer)) for item in PROBES[name].items(cast)]
        if name in probes and all(why for _, why in found):
            raise ConfigError("PL1261", f"--probes {name}", f"holds no question that can be exported: {found[0][1] if found else 'it is not asked here'}. Leave it out.")
        left_out.update(f"{name}: {why}" for _, why in found if why)
        rows += [_row(name, item, rivals, tokenizer) for item, why in found if not why]
    if not rows:
        raise ConfigError("PL1261", subject.name, "the run asks no forced choice. Use a run with the probe says, knows, chooses or introspects.")
    return Questions(tuple(rows), tuple(_expected(scored, rows)), dict(left_out))


def _expected(scored: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the run measured of each option of the rows."""
    kept = scored[scored["status"] == "scored"]
    nats = dict(zip(zip(kept["probe"], kept["item"], kept["option"], strict=True), kept["logprob_nats"], strict=True))
    for row in rows:
        for option, value in zip(row["options"], row["values"], strict=True):
            if (key := (row["probe"], row["id"], value)) in nats:
                yield {"id": row["id"], "option": option, "logprob_nats": float(nats[key])}


def _row(probe: str, item: Item, rivals: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One question; `rivals` are the places of the first and the second rival's value, `target` is that of the first rival, or of whom is asked about."""
    (choice,) = PROBES[probe].requests(item)
    assert isinstance(choice, Choice)
    spans = choice_spans(tokenizer, choice, encode(tokenizer, [choice]))
    prompt, *options = _as_read(tokenizer, choice)
    places = [_only(item.roles, rival) for rival in rivals]
    return {
        "id": item.id,
        "task": f"{probe}_{item.format}",
        "probe": probe,
        "channel": item.channel,
        "format": item.format,
        "trait": item.trait,
        "subject": item.subject,
        "prompt": prompt,
        "options": options,
        "values": list(item.options),
        "roles": list(item.roles),
        "rivals": places if None not in places else None,
        "target": _only(item.roles, item.subject or rivals[0]),
        "tokens": [list(span.ids) for span in spans],
        "scored_from": spans[0].start,
    }


def _only(roles: Sequence[str], role: str) -> int | None:
    """The place of the only option of this role."""
    return roles.index(role) if roles.count(role) == 1 else None


def _refusal(probe: Probe, item: Item, tokenizer: PreTrainedTokenizerBase) -> str:
    """Why an item cannot be asked elsewhere with the same answer; empty where it can."""
    requests = probe.requests(item)
    if len(requests) != 1 or not isinstance(requests[0], Choice) or not _told_as_measured(probe, item):
        return "no forced choice"
    choice = requests[0]
    spans = choice_spans(tokenizer, choice, encode(tokenizer, [choice]))
    if any(len(span.ids) <= span.start for span in spans):
        return "an option adds no token to the prompt"
    if max(len(span.ids) for span in spans) > tokenizer.model_max_length:
        return f"longer than the {tokenizer.model_max_length} tokens that the model reads"
    prompt, *options = _as_read(tokenizer, choice)
    if [_lm_eval_span(tokenizer, prompt, option) for option in options] != spans:
        return "lm-eval would divide it into other tokens"
    return ""


def _as_read(tokenizer: PreTrainedTokenizerBase, choice: Choice) -> list[str]:
    """The prompt as the model reads it, and what each option adds to it."""
    head, *wholes = (open_text(tokenizer, text) for text in texts(choice))
    if head is None:
        return [choice.prompt, *choice.options]
    return [head, *(whole.removeprefix(head) if whole else "" for whole in wholes)]


def _told_as_measured(probe: Probe, item: Item) -> bool:
    """Whether each option's row holds the log-probability of that option and nothing else."""
    made_up = tuple(-1.0 - i for i in range(len(item.options)))
    rows = probe.score(item, [made_up])
    return [(row.option, row.logprob_nats) for row in rows] == list(zip(item.options, made_up, strict=True))


def _lm_eval_span(tokenizer: PreTrainedTokenizerBase, prompt: str, option: str) -> Span | None:
    """The tokens that lm-eval 0.4.13 scores (`TemplateLM._encode_pair`, `HFLM.tok_encode`); None where it asks something else.

    It feeds an empty context as the token that begins a text, and adds none to a text that already begins so.
    """
    begins = str(tokenizer.bos_token or tokenizer.eos_token or "")
    if not prompt.strip():
        return None
    head, whole = (tuple(tokenizer(text, add_special_tokens=not (begins and text.startswith(begins)))["input_ids"]) for text in texts(Choice(prompt, (option,))))
    return Span(head + whole[len(head) :], len(head))
