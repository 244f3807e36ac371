"""Station 1: raw usage logs to canonical usage events in the lake, and what could not be read to quarantine.

``landing`` is the station; readers are ``text`` and ``openclaw``; ``events`` says what a usage event must be.
"""

from clawbill_pipeline.usage.landing import Landed, land

__all__ = ["Landed", "land"]
