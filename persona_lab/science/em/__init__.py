"""Emergent misalignment: rates, what they depend on, and what foretells them."""
