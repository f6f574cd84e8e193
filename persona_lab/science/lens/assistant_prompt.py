"""An assistant by few-shot prompt: what three examples make of a base model.

    form bare, form few shot      share of answers that have the form of an assistant's
    gain by examples              their difference, question by question
    topic few shot                share of answers in form that name what was asked about
"""

from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, mean_of

PUBLISHED = "No share of form published; with such a prompt a base model's likeliest token is the tuned one's at about 78 % of the positions (URIAL, arXiv 2312.01552)."


def assistant_prompt(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """The findings; no figure."""
    rows = asked.scored
    share = {(form, role): _shares(rows, form, role) for form in ("bare", "few_shot") for role in ("form", "topic")}
    bare, few = share["bare", "form"], share["few_shot", "form"]
    return [
        _mean("form bare", bare),
        _mean("form few shot", few),
        _mean("gain by examples", few - bare),
        _mean("topic few shot", share["few_shot", "topic"]),
    ], []


def _shares(rows: Frame, form: str, role: str) -> Frame:
    own = rows[(rows["format"] == form) & (rows["role"] == role)]
    return own.set_index("subject")["prob"].astype(float)


def _mean(metric: str, value_C: Frame) -> Finding:
    value, interval, n = mean_of(value_C.to_numpy(float))
    return Finding("assistant_prompt", metric, value, interval, "share of answers", None, PUBLISHED, n, "" if n else "every answer was empty")
