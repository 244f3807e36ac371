"""clawbill: from raw usage logs to invoices that explain themselves. Holds the version, and the Dagster component."""

from importlib import import_module

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return [*globals(), "UsageBilling"]


def __getattr__(name: str) -> object:
    # Loaded when asked for: most of clawbill, its commands among it, does without Dagster.
    if name == "UsageBilling":
        return import_module("clawbill_pipeline.component").UsageBilling
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
