"""What a reader sees: one self-contained page, and its figures."""

from persona_lab.report.page import build_report

__all__ = ["build_report"]
