"""Bits: what documents supply, what training makes of them, and what an ideal reader would."""
