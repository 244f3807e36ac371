"""Text for spreadsheets that no spreadsheet takes for a formula. Nothing else."""

from __future__ import annotations

# What spreadsheets take for the start of a formula (owasp.org, CSV injection).
_TRIGGERS = ("=", "+", "-", "@", "\t", "\r", "\n")


def harmless(text: str) -> str:
    """``text`` with an apostrophe in front where a spreadsheet would run it. For text only, never for numbers."""
    return f"'{text}" if text.startswith(_TRIGGERS) else text
