"""A catalogue for somebody's own logs: every tenant and service found in them, at prices to be replaced. Only text."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import yaml

from clawbill_pipeline.catalog.periods import period_at
from clawbill_pipeline.money import plain
from clawbill_pipeline.usage.survey import Survey

#: Made-up prices in USD a unit, so that there is something to bill. The longest prefix of the service's name wins.
PRICES = {
    "": "0.001",
    "tokens.": "0.000004",
    "tokens.input": "0.000003",
    "tokens.output": "0.000015",
    "tokens.cache_read": "0.0000003",
    "tokens.cache_write": "0.00000375",
    "messages": "0",
}


def catalogue_for(survey: Survey, first: datetime) -> str:
    """The YAML of a catalogue for what ``survey`` found; it starts with the billing period that holds ``first``."""
    effective = "2000-01-01T00:00:00Z"
    services: dict[str, Any] = {}
    prices: dict[str, Any] = {}
    for name, found in survey.services.items():
        services[name] = {"unit": _unit(name), "dimensions": list(found.dimensions)}
        if found.negative:
            services[name]["allow_negative"] = True
        prices[name] = {"model": "per_unit", "unit_amount": plain(Decimal(_price(name)))}
    document = {
        "version": 1,
        "live": False,
        "start": f"{period_at(first, 1, ZoneInfo('UTC')).start:%Y-%m-%dT%H:%M:%SZ}",
        "sources": [json.loads(survey.source.model_dump_json(exclude_defaults=False))],
        "services": services,
        "rate_cards": {
            "demo": {
                "currency": "USD",
                "description": "Made-up prices; put your own here.",
                "versions": [{"effective_from": effective, "prices": prices}],
            }
        },
        "tenants": {tenant: {"rate_card": "demo"} for tenant in survey.tenants},
    }
    head = "# yaml-language-server: $schema=./catalog.schema.json\n# Made by `clawbill demo --source`.\n"
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def starter(path: Path, *, start: datetime | None = None) -> str:
    """The starter catalogue's text, comments and all; ``start`` replaces its first hour."""
    text = path.read_text(encoding="utf-8")
    if start is None:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(f"start: {start:%Y-%m-%dT%H:%M:%SZ}\n" if line.startswith("start:") else line for line in lines)


def _price(service: str) -> str:
    return PRICES[max((prefix for prefix in PRICES if service.startswith(prefix)), key=len)]


def _unit(service: str) -> str:
    return "token" if service.startswith("tokens.") else service.rpartition(".")[2].removesuffix("s") or "unit"
