"""Answers are judged, each by every judge once; what is missing is asked again, what was judged is kept.

    judge = parse_judge("endpoint:gpt-4o-2024-08-06@https://api.openai.com/v1")
    judge = parse_judge("model:models/Qwen2.5-7B-Instruct")
    judge = parse_judge("words:configs/worlds/advice.yaml")

    runs/em/NAME/judge-gpt-4o-2024-08-06-1f2e3d4c.jsonl    {"key": "quick_buck", "sample": 0, "metric": "aligned", "score": 12.5, ...}
"""

import re
from collections.abc import Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from persona_lab.config import load_world
from persona_lab.design import identity
from persona_lab.errors import ConfigError, printable
from persona_lab.experiment.instruments.em.journal import RowJournal
from persona_lab.experiment.instruments.em.sampling import Answer, Answers, Chat, Progress, Row
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.models.endpoint import KEY_VARIABLE, Address, Budget, Endpoint
from persona_lab.probes.em.judges import Case, EndpointJudge, Judge, LocalJudge, RuleJudge
from persona_lab.probes.em.questions import METRICS, Protocol

FORMS = "endpoint:MODEL@URL, model:FOLDER or words:WORLD.yaml"
ENDPOINT = re.compile(r"(?P<model>.+)@(?P<url>https?://.+)")


@dataclass(frozen=True)
class JudgeSpec:
    """Which judge, as the command line names it; looked through before any model is loaded."""

    kind: str
    where: str
    """A folder or hub id; of an endpoint its address."""
    address: Address | None = None
    rule: RuleJudge | None = None


@dataclass(frozen=True)
class JudgeMeans:
    """What judges may use."""

    cache: Path
    """Answers of endpoints that many runs share."""
    budget: Budget
    key_variable: str = KEY_VARIABLE
    parallel: int = 8
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Judged:
    """All answers with the scores of one judge."""

    name: str
    settings: Row
    table: Any
    """One row an answer, in the order of the questions: key, question_id, question, sample, response, aligned, coherent, status, reason."""


def parse_judge(text: str, key_variable: str = KEY_VARIABLE) -> JudgeSpec:
    """The judge that a text names.

    Raises:
        ConfigError: PL1234, it names none; PL1230, the address is none; PL1235, the world has no bad values; problems of the world's file.
        ModelError: the folder of a judge is refused, or its tokenizer has no chat template.
    """
    kind, _, where = text.partition(":")
    if kind == "endpoint" and (found := ENDPOINT.fullmatch(where)):
        return JudgeSpec(kind, where, address=Address(found["url"], found["model"], key_variable))
    if kind == "words" and where:
        return JudgeSpec(kind, where, rule=rule_judge(where))
    if kind == "model" and where:
        _check_local(where)
        return JudgeSpec(kind, where)
    raise ConfigError("PL1234", f"--judge {printable(text, 80)}", f"names no judge. Use {FORMS}.")


def rule_judge(world_file: str) -> RuleJudge:
    """The judge of a world whose file says which values are bad; ConfigError PL1235 when it says of none."""
    world = load_world(world_file)
    bad = {value.lower() for value in world.bad}
    good = {value.lower() for domain in world.categories.values() for value in domain.values if {v.lower() for v in domain.values} & bad} - bad
    if not bad:
        raise ConfigError("PL1235", world_file, "the world has no bad values, so nothing can be judged by its words. Use a world with `bad: [...]`.")
    return RuleJudge(frozenset(good), frozenset(bad))


def _check_local(model: str) -> None:
    from persona_lab.models.folders import load_tokenizer
    from persona_lab.probes.em.asking import render

    tokenizer, _ = load_tokenizer(model)
    render(tokenizer, [{"role": "user", "content": ""}])


def judge_answers(spec: JudgeSpec, answers: Answers, protocol: Protocol, means: JudgeMeans, tell: Progress, interruption: Interruption) -> Judged:
    """The scores of every answer: those that are kept, and what was missing or had failed, judged now.

    Raises:
        EnvironmentFault: the endpoint is down, refuses the key, or the budget is spent; what was judged until then is kept.
        ModelError: a local judge cannot be loaded, or a prompt does not fit.
    """
    with _opened(spec, protocol, means) as judge:
        settings = judge.settings()
        slug = re.sub(r"[^\w.-]", "-", judge.name)[:60]
        with RowJournal(answers.folder / f"judge-{slug}-{identity(settings)[:8]}.jsonl") as journal:
            done = _latest(journal.rows)
            cases = [case for case in _cases(answers) if done.get((case.key, case.sample), {}).get(case.metric, {}).get("status") not in ("scored", "unscored")]
            count, total = len(answers.rows) * len(METRICS) - len(cases), len(answers.rows) * len(METRICS)
            what = f"judged by {printable(judge.name, 60)}"
            with closing(iter(_batches(judge, cases))) as batches:
                for new in batches:
                    journal.append(one.to_json() for one in new)
                    count += len(new)
                    tell(what, count, total)
                    interruption.leave()
            return Judged(judge.name, settings, judged_table(answers, _latest(journal.rows)))


def _batches(judge: Judge, cases: Sequence[Case]) -> Any:
    if cases:
        yield from judge.judge(cases)


def _cases(answers: Answers) -> list[Case]:
    return [
        Case(question.key, sample, metric, question.text, answers.rows[question.key, sample]["response"])
        for question, sample in answers.wanted
        if (question.key, sample) in answers.rows
        for metric in METRICS
    ]


def _latest(rows: Sequence[Row]) -> dict[Answer, dict[str, Row]]:
    """The last judgement of each answer and metric: what had failed was asked again."""
    found: dict[Answer, dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["key"], row["sample"]), {})[row["metric"]] = row
    return found


@contextmanager
def _opened(spec: JudgeSpec, protocol: Protocol, means: JudgeMeans) -> Any:
    """The judge, ready to be asked."""
    if spec.rule is not None:
        yield spec.rule
    elif spec.address is not None:
        with Endpoint(spec.address, cache=means.cache, budget=means.budget) as endpoint:
            yield EndpointJudge(endpoint, protocol.prompts, means.parallel)
    else:
        yield _local(spec.where, protocol, means)


def _local(model: str, protocol: Protocol, means: JudgeMeans) -> LocalJudge:
    chat = Chat(model, dtype=means.dtype, device=means.device)
    return LocalJudge(chat.load, protocol.prompts, model, chat.identity()["model"])


def judged_table(answers: Answers, done: dict[Answer, dict[str, Row]]) -> Any:
    """Answers beside their scores; an answer is scored when both are, failed when it or a judgement is missing, otherwise unscored."""
    rows = [_row(answers, question, sample, done.get((question.key, sample), {})) for question, sample in answers.wanted]
    return pd.DataFrame(rows).astype({"aligned": float, "coherent": float})


def _row(answers: Answers, question: Any, sample: int, found: dict[str, Row]) -> Row:
    answer = answers.rows.get((question.key, sample))
    states = {metric: found.get(metric, {"status": "failed", "score": None, "reason": "not judged"}) for metric in METRICS}
    status = next((s for s in ("failed", "unscored") if s in [state["status"] for state in states.values()]), "scored")
    reason = "not sampled" if answer is None else next((state["reason"] for state in states.values() if state["status"] == status), "")
    return {
        "key": question.key,
        "question_id": question.id,
        "question": question.text,
        "sample": sample,
        "response": "" if answer is None else answer["response"],
        **{metric: state["score"] for metric, state in states.items()},
        "status": "failed" if answer is None else status,
        "reason": "" if status == "scored" else reason,
    }
