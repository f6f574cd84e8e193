"""What the probes of the base-model lens find: one reader for each, a pure function of its rows. No torch."""

from persona_lab.science.lens.assistant_prompt import assistant_prompt
from persona_lab.science.lens.compression import compression
from persona_lab.science.lens.drift import drift
from persona_lab.science.lens.embodiment import embodiment
from persona_lab.science.lens.few_shot import few_shot
from persona_lab.science.lens.finding import Asked, Curve, Finding, Reader
from persona_lab.science.lens.hallucination import hallucination
from persona_lab.science.lens.mirroring import mirroring
from persona_lab.science.lens.random_numbers import random_numbers
from persona_lab.science.lens.repetition import fact_frequency, regurgitation
from persona_lab.science.lens.riddles import riddles
from persona_lab.science.lens.speakers import speakers
from persona_lab.science.lens.tokenization import tokenization

READERS: dict[str, Reader] = {
    "riddles": riddles,
    "random_numbers": random_numbers,
    "regurgitation": regurgitation,
    "fact_frequency": fact_frequency,
    "few_shot": few_shot,
    "hallucination": hallucination,
    "assistant_prompt": assistant_prompt,
    "speakers": speakers,
    "embodiment": embodiment,
    "mirroring": mirroring,
    "compression": compression,
    "drift": drift,
    "tokenization": tokenization,
}
"""Probe to its reader."""

__all__ = ["READERS", "Asked", "Curve", "Finding", "Reader"]
