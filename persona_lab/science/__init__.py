"""What the scores say: effects, thresholds, controls and claims. Pure functions of data frames; no torch."""

from persona_lab.science.claims import Claim
from persona_lab.science.controls import Control
from persona_lab.science.effects import Settings
from persona_lab.science.summary import Summary, summarise

__all__ = ["Claim", "Control", "Settings", "Summary", "summarise"]
