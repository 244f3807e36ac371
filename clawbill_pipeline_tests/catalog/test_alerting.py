"""The catalogue's settings for alerts and corrections: what is refused, and what a limit is."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from clawbill_pipeline.catalog import CatalogError, parse
from clawbill_pipeline_tests.reconciliation.month import CATALOG

SOURCES = "\nsources: [{name: app, kind: json_lines, path: usage}, {name: slow, kind: json_lines, path: slow}]\n"


def test_limits_and_hours() -> None:
    found = parse(
        f"{CATALOG}{SOURCES}alerts: {{stale_after_hours: 2, stale_after_hours_by_source: {{slow: 72}}}}\n"
        "correcting: {automatic_below: 2.5, automatic_below_by_currency: {jpy: 1500}}\n"
    )
    assert (found.alerts.stale_after("app"), found.alerts.stale_after("slow")) == (
        timedelta(hours=2),
        timedelta(hours=72),
    )
    assert (found.correcting.limit("JPY"), found.correcting.limit("USD"), found.correcting.limit(None)) == (
        Decimal(1500),
        Decimal("2.5"),
        Decimal("2.5"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alerts: {stale_after_hours_by_source: {nobody: 2}}", "names no source: nobody"),
        ("alerts: {stale_after_hours: 0}", "stale_after_hours"),
        ("correcting: {automatic_below_by_currency: {dollars: 2}}", "dollars"),
        ("correcting: {automatic_below_by_currency: {USD: -2}}", "below 0"),
        ("correcting: {automatic_below: -1}", "automatic_below"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(CatalogError, match=said):
        parse(f"{CATALOG}{SOURCES}{text}\n")
