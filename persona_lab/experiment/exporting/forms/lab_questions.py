"""What lm-eval reads of this folder: its questions, and what the log-probabilities of their options say.

    log_odds   log P(the first rival's value) - log P(the second's), nats; only of questions that have both among their options
    acc        1 where the likeliest option is the target: the first rival's value, or that of whom is asked about
"""

import json
from pathlib import Path

import datasets

QUESTIONS = Path(__file__).with_name("questions.jsonl")


def read(task, **_):
    """The questions of one task."""
    rows = map(json.loads, QUESTIONS.read_text(encoding="utf-8").splitlines())
    return {"test": datasets.Dataset.from_list([row for row in rows if row["task"] == task])}


def outcomes(doc, results):
    """What one question says; `results` are (log-probability in nats, is greedy) of each option."""
    nats = [nats for nats, _ in results]
    said = {}
    if doc["rivals"] is not None:
        first, second = doc["rivals"]
        said["log_odds"] = nats[first] - nats[second]
    if doc["target"] is not None:
        said["acc"] = float(max(range(len(nats)), key=nats.__getitem__) == doc["target"])
    return said
