"""Probes: questions put to a model, and how the answers are scored. Every score is a row of the tidy table."""

from persona_lab.probes import bundles, concepts, ledger, lens, openings, persona_prompt, process_text, selfreport, shots, text, traits
from persona_lab.probes.protocol import PROBES, Cast, Item, Probe, Row

__all__ = ["PROBES", "Cast", "Item", "Probe", "Row", "bundles", "concepts", "ledger", "lens", "openings", "persona_prompt", "process_text", "selfreport", "shots", "text", "traits"]
