"""Speaker confusion: whose turn, whose words, and who is spoken to.

    user turn             P(the user's tag | an assistant turn has ended), among the user's and the assistant's
    attribution own       the speaker of a line is named, where each says what it would say
    attribution swapped   the same where each says what the other one would say
    pull of the name      accuracy own minus accuracy swapped: 0 for a reader of tags
    pull of the last      accuracy on last lines minus accuracy on first lines
    audience              P(the answer is addressed to the audience of a letter, and not to the user who asks)
"""

from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, mean_of

TAGS = "What the text says: exact."
TURNS = "In the world's text the user speaks after every turn of the assistant: exact."
FIDELITY = "None published for one turn; over more than 100 turns persona fidelity decays (arXiv 2512.12775)."


def speakers(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """The findings; no figure."""
    rows = asked.scored
    turn, audience = (_mean_prob(rows, form, role) for form, role in (("next", "user"), ("audience", "audience")))
    reference, source = (1.0, TURNS) if asked.of_world else (None, FIDELITY)
    found = [_mean("user turn", turn, "probability", reference, source)]
    right = {form: _accuracy(rows[rows["format"] == form]) for form in ("own", "swapped")}
    found += [_mean(f"attribution {form}", own.groupby("subject")["right"].mean(), "share", 1.0, TAGS) for form, own in right.items()]
    pull = right["own"].groupby("subject")["right"].mean() - right["swapped"].groupby("subject")["right"].mean()
    found.append(_mean("pull of the name", pull, "share", 0.0, TAGS))
    both = _accuracy(rows[rows["format"].isin(["own", "swapped"])])
    by_place = both.pivot_table(index="subject", columns="trait", values="right").reindex(columns=["first", "last"])
    found.append(_mean("pull of the last", by_place["last"] - by_place["first"], "share", 0.0, TAGS))
    return [*found, _mean("audience", audience, "probability", 0.0, TAGS)], []


def _mean_prob(rows: Frame, form: str, role: str) -> Frame:
    """Normalised probability of a role, mean for each subject."""
    return rows[(rows["format"] == form) & (rows["role"] == role)].groupby("subject")["prob_normalized"].mean()


def _accuracy(rows: Frame) -> Frame:
    """One row an item: subject, trait, and whether the speaker is the likeliest option; a tie is half right."""
    speaker = rows[rows["role"] == "speaker"].set_index("item")
    other = rows[rows["role"] == "other"].set_index("item")["logprob_nats"].reindex(speaker.index)
    right = (speaker["logprob_nats"] > other) + 0.5 * (speaker["logprob_nats"] == other)
    return speaker[["subject", "trait"]].assign(right=right.astype(float))


def _mean(metric: str, value_C: Frame, unit: str, reference: float | None, source: str) -> Finding:
    value, interval, n = mean_of(value_C.to_numpy(float))
    return Finding("speakers", metric, value, interval, unit, reference, source, n, "" if n else "no item was scored")
