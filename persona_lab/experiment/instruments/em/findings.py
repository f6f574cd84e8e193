"""What `em eval` and `em rescore` state, and the files that it stands in.

    runs/em/NAME/responses.csv    every answer with its scores, in the published format: `em rescore` of it gives the same rates
    runs/em/NAME/em.json          rates, accounting, agreement, settings; claims.json; em.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.errors import ConfigError, printable
from persona_lab.experiment.instruments.em.judging import Judged, JudgeMeans, judge_answers, parse_judge
from persona_lab.experiment.instruments.em.sampling import Answers, Chat, Progress, sample_answers
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.reading.em_responses import read_responses, write_responses
from persona_lab.experiment.reading.runs import CLAIMS
from persona_lab.experiment.reading.show import grouped
from persona_lab.probes.em.questions import Protocol, load_protocol
from persona_lab.report.instrument import Part, Sheet, instrument_page
from persona_lab.science.claims import Claim, Said, figure
from persona_lab.science.em.judged import agreement_claims, judged_claims, lead, published_claims
from persona_lab.science.em.published import PUBLISHED
from persona_lab.store.files import finite, sha256_of, write_json, write_text

if TYPE_CHECKING:
    from persona_lab.probes.em.asking import Sampling

RESULT, PAGE, TABLE = "em.json", "em.html", "responses.csv"
SHOWN_ANSWERS = 10
"""Of the most misaligned coherent ones, on the page."""
AS_PUBLISHED = "judge prompts as published"
NOT_PUBLISHED = "judge prompts other than the published ones: rates are comparable with those in rank only"


@dataclass(frozen=True)
class Findings:
    """Rates of one table of judged answers, with what is said beside them."""

    lead: str
    claims: tuple[Claim, ...]
    said: Mapping[str, Any]


def published_name(text: str | None, file: Path | None = None) -> str | None:
    """The model organism to compare with: the one that is named, else the one whose file this is; ConfigError PL1236 when nothing is published of it."""
    if text is None:
        return file.stem if file is not None and file.stem in PUBLISHED else None
    if text not in PUBLISHED:
        raise ConfigError("PL1236", f"--published {printable(text, 80)}", f"no rate is known of it. Use one of: {', '.join(PUBLISHED)}.")
    return text


@dataclass(frozen=True)
class Evaluation:
    """What is asked of whom, and who judges."""

    chat: Chat
    protocol: Path | None
    """A file; None for the one that comes with the laboratory."""
    variants: tuple[str, ...]
    sampling: "Sampling"
    judges: tuple[str, ...]
    """As `parse_judge` reads them; the first one's scores are the result."""
    published: str | None = None


def evaluate_chat(asked: Evaluation, folder: Path, means: JudgeMeans, tell: Progress, interruption: Interruption, *, batch: int) -> Findings:
    """Everything of an evaluation that is not in its folder yet, and what all of it says.

    Everything that can be wrong is looked for before a model is loaded: ConfigError, ModelError; see `sample_answers`, `judge_answers`.
    """
    protocol = load_protocol(asked.protocol)
    questions = protocol.of(asked.variants)
    published_name(asked.published)
    specs = [parse_judge(text, means.key_variable) for text in asked.judges]
    answers = sample_answers(asked.chat, questions, asked.sampling, folder, tell, interruption, batch=batch)
    judged = [judge_answers(spec, answers, protocol, means, tell, interruption) for spec in specs]
    return evaluated(answers, protocol, judged, asked.published)


def rescored(file: Path, published: str | None = None) -> Findings:
    """The rates of a published file of responses, and how they compare; CorpusError, ConfigError."""
    name = published_name(published, file)
    table = read_responses(file)
    said = _all_said(table, name)
    note = f" {_compared(said)}" if name else ""
    claims = _claims(said, file, name)
    return Findings(lead(said, note), claims, {"file": str(file), "published": name, "answers": len(table), "claims": [claim.to_json() for claim in claims]})


def evaluated(answers: Answers, protocol: Protocol, judged: Sequence[Judged], published: str | None) -> Findings:
    """The rates of every judge and their agreement, once the files stand."""
    name = published_name(published)
    for number, one in enumerate(judged):
        write_responses(answers.folder / table_name(number), one.table)
    claims = claims_of_tables(answers.folder, [one.name for one in judged], name)
    told = judge_note(judged[0], protocol)
    first = [_said(claim) for claim in claims if not claim.id.startswith("judge")]
    found = Findings(lead(first, f" J{told[1:]}.") + (f" {_compared(first)}" if name else ""), tuple(claims), {})
    ended = [row["ended"] for row in answers.rows.values()]
    result = {
        "lead": found.lead,
        "judge_names": [one.name for one in judged],
        "settings": {key: value for key, value in answers.settings.items() if key not in ("prompts", "questions")},
        "judges": [one.settings for one in judged],
        "judge_prompts": told,
        "planned": len(judged[0].table),
        **{state: int((judged[0].table["status"] == state).sum()) for state in ("scored", "unscored", "failed")},
        "cut_off": ended.count(False),
        "published": name,
        "claims": [claim.to_json() for claim in claims],
    }
    write_json(answers.folder / RESULT, finite(result))
    write_json(answers.folder / CLAIMS, grouped(claims))
    write_text(answers.folder / PAGE, page(found, answers, judged[0].table, result))
    return replace(found, said=result)


def table_name(number: int) -> str:
    """The file of the answers as a judge scored them: the first one's, and those of the others."""
    return TABLE if number == 0 else f"responses-{number + 1}.csv"


def claims_of_tables(folder: Path, judges: Sequence[str], published: str | None) -> list[Claim]:
    """Every claim of an evaluation, from the tables of its judges alone; CorpusError."""
    files = [folder / table_name(number) for number in range(len(judges))]
    tables = [read_responses(file) for file in files]
    claims = list(_claims(_all_said(tables[0], published), files[0], published))
    for number, (judge, file, table) in enumerate(zip(judges[1:], files[1:], tables[1:], strict=True), start=2):
        own = _claims(_all_said(table, None), file, None)
        claims += [_renamed(claim, f"judge{number}.{claim.id}", f"{claim.text}; judge {judge}") for claim in own]
    for number, (judge, file, table) in enumerate(zip(judges[1:], files[1:], tables[1:], strict=True), start=2):
        args = {"files": [TABLE, file.name]}
        for said in agreement_claims(tables[0], table, (judges[0], judge)):
            claim = f"judge{number}.{said[0]}"
            claims.append(Claim(claim, *said[1:], recipe={"function": "agreement_claims", "node_ids": [], "args": {"claim": claim, **args}}))
    return claims


def _renamed(claim: Claim, name: str, text: str) -> Claim:
    return replace(claim, id=name, text=text, recipe={**claim.recipe, "args": {**claim.recipe["args"], "claim": name}})


def judge_note(judged: Judged, protocol: Protocol) -> str:
    """How far the rates may be compared with published ones."""
    if judged.settings["kind"] == "words":
        return "judged by the world's own words, not by a model: not comparable with published rates"
    return AS_PUBLISHED if protocol.as_published else NOT_PUBLISHED


def _all_said(table: Any, published: str | None) -> list[Said]:
    return [*judged_claims(table), *(published_claims(table, published) if published else [])]


def _claims(said: Sequence[Said], file: Path, published: str | None) -> tuple[Claim, ...]:
    args = {"file": file.name, "sha256": sha256_of(file), "published": published}
    return tuple(Claim(*one, recipe={"function": "judged_claims", "node_ids": [], "args": {"claim": one[0], **args}}) for one in said)


def _said(claim: Claim) -> Said:
    return claim.id, claim.text, claim.value, claim.interval, claim.unit, claim.verdict


def _compared(said: Sequence[Said]) -> str:
    """The comparison in a sentence."""
    found = {claim[0]: claim for claim in said}
    if "em.published.difference" not in found:
        return found["em.published"][1] + "."
    _, text, value, _, _, verdict = found["em.published.difference"]
    theirs = found["em.published.rate"]
    return f"P{theirs[1][1:]} ({figure(theirs[2])}), {text.split(':')[0]}: {verdict}, a difference of {figure(value)}."


def page(found: Findings, answers: Answers, table: Any, result: Mapping[str, Any]) -> str:
    """Everything on one page; what models said is escaped."""
    from persona_lab.models.control_tokens import unguarded

    kinds = {"Rates": ("em.main", "em.json", "em.template", "em.published"), "Questions": ("em.question",), "Accounting": ("em.accounting", "em.reason")}
    parts = [Part(title, claims=[c for c in found.claims if c.id.startswith(starts)]) for title, starts in kinds.items()]
    if others := [c for c in found.claims if c.id.startswith("judge")]:
        parts.append(Part("Other judges", claims=others))
    worst = table[(table["status"] == "scored") & (table["coherent"] > 50)].sort_values("aligned").head(SHOWN_ANSWERS)
    rows = [[row["question"], row["response"], figure(row["aligned"]), figure(row["coherent"])] for row in worst.to_dict("records")]
    parts.append(Part("Least aligned coherent answers", sheets=[Sheet(["question", "answer", "aligned", "coherent"], rows)]))
    prompts = [[key, unguarded(text)] for key, text in answers.settings["prompts"].items()]
    parts.append(Part("Prompts as the model reads them", sheets=[Sheet(["question", "prompt"], prompts)]))
    shown = {key: value for key, value in result.items() if key not in ("claims", "lead")}
    return instrument_page("Emergent misalignment", found.lead, parts, shown)
