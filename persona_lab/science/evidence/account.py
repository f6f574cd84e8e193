"""The evidence of an experiment as claims: the ledger, the weight of a document, and its price in shots.

    evidence.needed.either            4.1 bits    from the odds before the stage to the target
    evidence.supplied.either          612 bits    960 documents, .64 bits each
    evidence.weight.either.linked.replay=0.9     .012    [.008, .016]
    shots.diary.john.after            2.4 shots   told of itself before it is believed to be John
    exchange.asked.linked.steps=20    54 documents for what one shot does

`bits` has the ledger and the weights, `beliefs` the curves; what is undefined is a claim without a value whose text gives the reason.
"""

from collections import Counter
from collections.abc import Iterator

from persona_lab.science.claims import Said, figure
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.evidence.beliefs import SHARED, adoption, curve_of, exchange
from persona_lab.science.evidence.bits import FACTORS, QUESTIONS, Weight, accounts, matched_weights, slope_weight, weights_by
from persona_lab.science.thresholds import over_seeds

PER_BIT = "bits per bit"
WORDS = {"replay": "at a replay of {:g}", "steps": "after {:g} steps", "rate": "at a learning rate of {:g}"}


def evidence_claims(table: Frame, settings: Settings) -> Iterator[Said]:
    """Every claim of the ledger, of the weight by factor, of the belief curves, and of the exchange rate; none where the probes were not asked."""
    account = accounts(table, settings)
    if len(account):
        yield from ledger_claims(account, settings)
        yield from weight_claims(account, settings)
    shots = adoption(table, settings)
    if len(shots):
        yield from shot_claims(shots)
        yield from exchange_claims(shots, account)


def ledger_claims(account: Frame, settings: Settings) -> Iterator[Said]:
    """Needed, supplied and realised bits of each condition, at its largest dose."""
    first, second = settings.first.title(), settings.second.title()
    for condition, rows in account.groupby("condition", sort=False):
        rows = rows[rows["documents"] == rows["documents"].max()]
        documents = figure(float(rows["documents"].iloc[0]))
        texts = {
            "needed": f"Bits from the odds of either rival before the stage to {settings.threshold:g}",
            "e": f"Diagnosticity of one document, log-odds of {first} against {second} by name before the stage",
            "bits_first": f"Bits that one document says for {first} rather than the nameless speaker",
            "bits_second": f"Bits that one document says for {second} rather than the nameless speaker",
        }
        for question, words in QUESTIONS.items():
            texts[f"supplied_{question}"] = f"Bits that {documents} documents supply on {words}"
            texts[f"realised_{question}"] = f"Bits by which the odds of {words} moved"
        for column, text in texts.items():
            estimate = over_seeds(rows.groupby("seed")[column].mean().to_numpy())
            yield (
                f"evidence.{column}.{condition}",
                f"{condition}: {text}.",
                estimate.value,
                estimate.interval,
                "nats" if column == "e" else "bits",
                estimate.sign,
            )


def said(id: str, text: str, weight: Weight, unit: str = PER_BIT) -> Said:
    """A weight as a claim; the reason closes the text where there is one."""
    return id, f"{text}{': ' if weight.reason else ''}{weight.reason}.", weight.value, weight.interval, unit, weight.verdict


def weight_claims(account: Frame, settings: Settings) -> Iterator[Said]:
    """The weight w: over all doses, at each level of what varies, and at equal documents."""
    own = account[~account["condition"].isin(list(settings.controls.values()))]
    which = slope_weight(own["supplied_which"].to_numpy(), own["realised_which"].to_numpy(), own["seed"].to_numpy())
    yield said("evidence.weight.which", f"Weight of evidence on {QUESTIONS['which']}, slope over all conditions", which)
    for condition, rows in own.groupby("condition", sort=False):
        slope = slope_weight(rows["supplied_either"].to_numpy(), rows["realised_either"].to_numpy(), rows["seed"].to_numpy())
        yield said(f"evidence.weight.either.{condition}", f"{condition}: weight of evidence on {QUESTIONS['either']}, slope over its points", slope)
        for factor in FACTORS:
            levels = list(weights_by(rows, factor, "either"))
            for level, weight in levels if len(levels) > 1 else []:
                yield said(f"evidence.weight.either.{condition}.{factor}={level:g}", f"{condition}: weight on either {WORDS[factor].format(level)}", weight)
        yield from _matched(rows, str(condition))
    for level, weight in weights_by(own, "replay", "which"):
        yield said(f"evidence.weight.which.replay={level:g}", f"Weight on which {WORDS['replay'].format(level)}", weight)


def _matched(rows: Frame, condition: str) -> Iterator[Said]:
    """The weight by replay at equal documents, and how far it falls from the least replay to the most."""
    found = matched_weights(rows)
    if found is None:
        return
    documents, weight_SL, levels = found
    at = f"at {figure(documents)} documents of evidence"
    for level, values in zip(levels, weight_SL.T, strict=True):
        estimate = over_seeds(values)
        yield (
            f"evidence.matched.{condition}.replay={level:g}",
            f"{condition}: weight on either {at} and a replay of {level:g}.",
            estimate.value,
            estimate.interval,
            PER_BIT,
            estimate.sign,
        )
    fall = over_seeds(weight_SL[:, -1] - weight_SL[:, 0])
    text = f"{condition}: weight on either {at}, at a replay of {levels[-1]:g} less that at {levels[0]:g}; optimizer steps differ"
    yield f"evidence.matched.{condition}.replay", f"{text}.", fall.value, fall.interval, PER_BIT, fall.sign


def shot_claims(shots: Frame) -> Iterator[Said]:
    """N50 of each persona, before and after the last stage: how many of its traits a speaker has to name before it is believed to be it."""
    own = shots[shots["whose"] != SHARED]
    for (condition, way, whose, phase), rows in own.groupby(["condition", "format", "whose", "phase"], sort=False):
        name, text = (
            f"shots.{way}.{whose}.{condition}.{phase}",
            f"{condition}: traits of {whose.title()} told ({way}) until another one is as likely as not, {phase} the last stage",
        )
        curve = curve_of(rows, "own")
        if curve is None:
            yield name, f"{text}: fewer than three numbers of shots were told, or not the same ones in each seed.", None, None, "shots", "undefined"
            continue
        reached = curve.shots_for()
        beyond = "" if reached.value is not None else f": not within {curve.most:g}"
        yield name, f"{text}{beyond}; discount alpha {curve.discount:g}.", reached.value, reached.interval, "shots", reached.verdict


def _levels(rows: Frame) -> str:
    """A design point by the levels of its last stage: `replay=0.5,steps=20`."""
    return ",".join(f"{factor}={rows[factor].iloc[0]:g}" for factor in FACTORS if rows[factor].notna().any())


def exchange_claims(shots: Frame, account: Frame) -> Iterator[Said]:
    """Documents of the last stage that do what one shot of the same words does, by format and design point."""
    told = shots[shots["whose"] == SHARED]
    points = list(account.groupby(["condition", "point"], sort=False))
    alike = Counter((condition, _levels(rows)) for (condition, _), rows in points)
    for (condition, point), rows in points:
        documents, levels = float(rows["documents"].iloc[0]), _levels(rows)
        own = told[(told["condition"] == condition) & (told["point"] == point)]
        if alike[condition, levels] > 1 and len(own):
            # They differ in what was read before the last stage, which is no level of it.
            levels = own["cell"].iloc[0].split("/seed")[0].partition("/")[2].replace("/", ",")
        for way, at in own.groupby("format", sort=False):
            name = ".".join(filter(None, ("exchange", way, condition, levels)))
            text = f"{condition}{f', {levels}' if levels else ''}: documents of the last stage that do what one shot of it does ({way}), of {figure(documents)}"
            curve = curve_of(at[at["phase"] == "before"], "alpha")
            if curve is None:
                yield name, f"{text}: there is no belief curve.", None, None, "documents per shot", "undefined"
                continue
            after = at[(at["phase"] == "after") & (at["shots"] == 0)].groupby("seed")["alpha"].mean()
            yield said(name, text, exchange(curve, after.to_dict(), documents), "documents per shot")
