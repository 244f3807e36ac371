"""A day's report as one HTML page that needs nothing else, in the style of the period's page."""

from __future__ import annotations

from decimal import Decimal
from html import escape

from clawbill_pipeline.reporting.chart import columns_svg, waterfall_svg
from clawbill_pipeline.reporting.day_report import DayReport, Hour
from clawbill_pipeline.reporting.page import MOST_ROWS, amount_cell, breaks_table, document, instant, number, table


def day_page(report: DayReport) -> bytes:
    """The page's bytes; the same report gives the same bytes."""
    sections = [_head(report), *(_currency(report, currency) for currency in report.currencies)]
    return document(
        f"Billing differences {report.day}", [*sections, breaks_table(report.open, report.as_of), _hours(report)]
    )


def _head(report: DayReport) -> str:
    count = len(report.faults)
    verdict = f"{count} open break{'s' * (count != 1)}" if count else "No open break in these hours"
    cards = [
        ("Tenants", len({hour.tenant_id for hour in report.hours})),
        ("Hours of a tenant and service", len(report.hours)),
        ("Open breaks", count),
        ("Waiting", sum(found.standing == "waiting" for found in report.open)),
        ("Late or adjusted", sum(hour.revisions > 1 for hour in report.hours)),
    ]
    return (
        f"<header><h1>Billing differences {report.day}</h1>"
        f'<p class="quiet">UTC day; reconciled as of {instant(report.as_of)} UTC</p>'
        f'<p class="verdict {"bad" if count else "good"}">{verdict}</p>'
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{value:,}</b><span>{label}</span></div>' for label, value in cards)
        + "</div></header>"
    )


def _currency(report: DayReport, currency: str) -> str:
    def shown(value: Decimal) -> str:
        return f"{number(value)} {currency}"

    return (
        f'<section><h2>{currency}</h2><div class="charts"><div><h3>From rated to Stripe</h3>'
        f"{waterfall_svg(report.bars(currency), shown, f'From rated to Stripe in {currency}')}</div>"
        f"<div><h3>Rated an hour</h3>"
        f"{columns_svg(report.rated_hours(currency), shown, f'Rated an hour in {currency}')}</div></div></section>"
    )


_NUMBERS = ("metered_quantity", "rated_quantity", "rated_amount", "planned_units", "sent_units", "held_units")


def _hours(report: DayReport) -> str:
    rows = [_hour(hour) for hour in report.hours[:MOST_ROWS]]
    heads = ["Hour (UTC)", "Tenant", "Service", "Currency", "Metered", "Rated quantity", "Rated amount",
             "Units planned", "Units acknowledged", "Units held", "Revisions"]  # fmt: skip
    note = "Units are Stripe's whole units; held is shown where Stripe's hours were read."
    return table("Hours", heads, rows, len(report.hours), note, left=4)


def _hour(hour: Hour) -> str:
    cells = "".join(amount_cell(getattr(hour, name)) for name in _NUMBERS)
    return (
        f'<tr><td>{instant(hour.hour)}</td><th scope="row">{escape(hour.tenant_id)}</th>'
        f"<td>{escape(hour.service)}</td><td>{escape(hour.currency or '–')}</td>{cells}"
        f'<td class="n">{hour.revisions}</td></tr>'
    )
