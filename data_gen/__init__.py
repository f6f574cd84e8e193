"""Worlds, personas and documents: text whose true statistics are known.

Imports nothing of `persona_lab`; the interface between the two is a JSONL corpus and the exact oracle.
"""
