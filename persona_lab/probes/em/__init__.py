"""Emergent misalignment in chat models: the published questions, answers sampled as published, and judges of them."""
