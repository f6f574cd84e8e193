"""Tokenization view: what the tokenizer makes of the words that are asked about.

    single tokens       share of the one-word options that are one token
    unequal options     share of the sets of options that differ in tokens, and are favoured or not by a sum of log-probabilities
    tokens a word       of the prompts: all tokens over all words between spaces (fertility), marks counted with their words
    given back          share of the texts that decode to themselves, but for case and spaces
"""

import numpy as np

from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, resampled, share_of

WORDS = "One word is one token in the embedded world's tokenizer: exact."
NONE = "None published for these words."
ALL = "A text that is not given back is another text to the model."


def tokenization(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """The findings; no figure."""
    options = asked.scored[asked.scored["role"] == "option"]
    single = options[~options["option"].str.strip().str.contains(r"\W", regex=True)].drop_duplicates("option")
    sizes = options.groupby("item")["n_samples"]
    unequal = sizes.nunique()[sizes.size() > 1] > 1
    back = asked.rows.drop_duplicates("option")["status"] == "scored"
    reference, source = (1.0, WORDS) if asked.of_world else (None, NONE)
    return [
        _share("single tokens", (single["n_samples"] == 1).to_numpy(bool), "share of options", reference, source),
        _share("unequal options", unequal.to_numpy(bool), "share of sets", None, NONE),
        _fertility(asked.scored[asked.scored["role"] == "prompt"].drop_duplicates("option")),
        _share("given back", back.to_numpy(bool), "share of texts", 1.0, ALL),
    ], []


def _share(metric: str, hit_C: np.ndarray, unit: str, reference: float | None, source: str) -> Finding:
    value, interval, n = share_of(hit_C)
    return Finding("tokenization", metric, value, interval, unit, reference, source, n, "" if n else "there is none")


def _fertility(prompts: Frame) -> Finding:
    """All tokens over all words, with a bootstrap interval over prompts."""
    if prompts.empty:
        return Finding("tokenization", "tokens a word", None, None, "tokens per word", None, NONE, 0, "no prompt was divided")
    tokens_C, words_C = prompts["n_samples"].to_numpy(float), prompts["option"].str.split().str.len().to_numpy(float)
    interval = resampled(len(prompts), lambda drawn: float(tokens_C[drawn].sum() / words_C[drawn].sum()), "tokenization")
    return Finding("tokenization", "tokens a word", float(tokens_C.sum() / words_C.sum()), interval, "tokens per word", None, NONE, len(prompts))
