"""The report as one HTML page that needs nothing else: no script, no font, no link. Light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from html import escape
from typing import Any

from clawbill_pipeline.ledger.causes import CAUSES, STEPS
from clawbill_pipeline.money import exponent, plain, rounded, total
from clawbill_pipeline.reporting.chart import days_svg, waterfall_svg
from clawbill_pipeline.reporting.margin import totals
from clawbill_pipeline.reporting.report import Break, Report

#: Rows of a table on the page; the workbook and the CSV files have them all.
MOST_ROWS = 500

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #18202b; --quiet: #566172; --line: #d9dee6; --soft: #f3f5f8;
  --level: #2b5f9e; --gain: #1c7c4a; --loss: #b3261e; --warn: #8a5300; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e6eaf0; --quiet: #9aa6b6; --line: #2c3440;
  --soft: #1a2028; --level: #6ea8ea; --gain: #5cc48c; --loss: #ff8a80; --warn: #f0b35c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 24px 20px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; line-height: 1.25; } h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 20px 0 8px; color: var(--quiet); font-weight: 600; } p { margin: 4px 0; }
.quiet { color: var(--quiet); } .verdict { font-weight: 650; margin-top: 12px; }
.good { color: var(--gain); } .bad { color: var(--loss); }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 16px 0 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; background: var(--soft); }
.card b { display: block; font-size: 20px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.card span { color: var(--quiet); font-size: 13px; }
.charts { display: grid; gap: 24px; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
caption { text-align: left; padding: 8px 12px; color: var(--quiet); }
th, td { padding: 7px 10px; text-align: left; border-top: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
thead th { background: var(--soft); border-top: 0; font-weight: 600; }
tbody th { font-weight: 500; } tfoot td, tfoot th { font-weight: 650; border-top: 2px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.loss { color: var(--loss); }
td.w { white-space: normal; min-width: 260px; overflow-wrap: anywhere; }
small { display: block; color: var(--quiet); font-size: 12px; }
svg { display: block; overflow: visible; } svg text { fill: var(--ink); font-size: 13px; }
svg text.amount { text-anchor: end; font-variant-numeric: tabular-nums; }
svg .track { fill: var(--soft); } svg .level { fill: var(--level); } svg .gain { fill: var(--gain); }
svg .loss { fill: var(--loss); } svg line.gain { stroke: var(--gain); } svg line.loss { stroke: var(--loss); }
svg line { stroke-width: 2; } a { color: var(--level); } .scroll:focus-visible { outline: 2px solid var(--level); }
@media print { body { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""


def page(report: Report) -> bytes:
    """The page's bytes; the same report gives the same bytes."""
    sections = [
        _head(report),
        *(_currency(report, currency) for currency in report.currencies),
        _waterfall(report),
        breaks_table(report.open, report.as_of),
        _causes(report),
        _witnesses(report),
        _margin(report),
        _adjustments(report),
        _quarantine(report),
    ]
    return document(f"Billing differences {report.period}", sections)


def document(title: str, sections: Iterable[str]) -> bytes:
    """A page of ``sections`` (HTML) in the reports' style."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    ).encode()


def _head(report: Report) -> str:
    count = len(report.faults)
    verdict = f"{count} open break{'s' * (count != 1)}" if count else "No open break: every cent is explained"
    cards = [
        ("Tenants", len({step.tenant_id for step in report.steps})),
        ("Open breaks", count),
        ("Waiting", sum(b.standing == "waiting" for b in report.open)),
        ("Late or adjusted", len(report.adjustments)),
        ("Lines in quarantine", len(report.quarantined)),
    ]
    return (
        f"<header><h1>Billing differences {escape(report.period)}</h1>"
        f'<p class="quiet">Reconciled as of {instant(report.as_of)} UTC</p>'
        f'<p class="verdict {"bad" if count else "good"}">{verdict}</p>'
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{value:,}</b><span>{label}</span></div>' for label, value in cards)
        + "</div></header>"
    )


def _currency(report: Report, currency: str) -> str:
    def shown(value: Decimal) -> str:
        return f"{number(value)} {currency}"

    days = [day for day in report.days if day.currency == currency]
    return (
        f'<section><h2>{currency}</h2><div class="charts"><div><h3>From rated to paid</h3>'
        f"{waterfall_svg(report.bars(currency), shown, f'From rated to paid in {currency}')}</div>"
        f"<div><h3>Rated a day</h3>{days_svg(days, shown, f'Rated a day in {currency}')}</div></div></section>"
    )


_WATERFALL = (
    ("metered_quantity", "Metered"), ("rated_amount", "Rated"), ("sent", "Sent"), ("held_by_stripe", "Held by Stripe"),
    ("invoiced_amount", "Invoiced"), ("paid_amount", "Paid"), ("rounding", "Rounding"),
)  # fmt: skip


def _waterfall(report: Report) -> str:
    rows = []
    for step in report.steps[:MOST_ROWS]:
        digits = exponent(step.currency) if step.currency else 2
        cells = "".join(
            amount_cell(getattr(step, name), digits if name in ("invoiced_amount", "paid_amount") else None)
            for name, _ in _WATERFALL
        )
        broken = f'<td class="n{" loss" * bool(step.breaks)}">{step.breaks:,}</td>'
        rows.append(
            f'<tr><th scope="row">{escape(step.tenant_id)}</th><td>{escape(step.service)}</td>'
            f"<td>{escape(step.currency or '–')}</td>{cells}{broken}</tr>"
        )
    totals = []
    for currency in report.currencies:
        digits = exponent(currency)
        known = {
            "rated_amount": None, "invoiced_amount": digits, "paid_amount": digits, "rounding": None
        }  # fmt: skip
        cells = "".join(
            amount_cell(report.total(name, currency), known[name]) if name in known else "<td></td>"
            for name, _ in _WATERFALL
        )
        totals.append(f'<tr><th scope="row" colspan="2">Total</th><td>{currency}</td>{cells}<td></td></tr>')
    heads = ["Tenant", "Service", "Currency", *(label for _, label in _WATERFALL), "Breaks"]
    note = "Sent and held are in the currency for services billed by amount, in the service's unit otherwise."
    return table("Waterfall", heads, rows, len(report.steps), note, totals, left=3)


def breaks_table(breaks: Iterable[Break], as_of: datetime) -> str:
    """Open differences, faults first, the largest first."""
    by_worth = sorted(breaks, key=lambda b: (b.standing != "fault", -abs(b.amount)))
    rows = [_break_row(b, as_of) for b in by_worth[:MOST_ROWS]]
    heads = ["Tenant", "Service", "Hour (UTC)", "Cause", "Quantity", "Amount", "Age", "Detail"]
    numeric = {"Quantity", "Amount", "Age"}
    return table("Open differences", heads, rows, len(by_worth), "Largest first.", numeric=numeric)


def _break_row(b: Break, as_of: datetime) -> str:
    loss = " loss" if b.standing == "fault" and b.amount < 0 else ""
    standing = "" if b.standing == "fault" else f", {b.standing}"
    return (
        f'<tr><th scope="row">{escape(b.tenant_id)}</th><td>{escape(b.service)}</td>'
        f"<td>{instant(b.hour) if b.hour else 'whole period'}</td>"
        f"<td>{escape(b.cause)}<small>{escape(b.step)}{standing}</small></td>{amount_cell(b.quantity)}"
        f'<td class="n{loss}">{number(b.amount)} {escape(b.currency or "")}</td>'
        f'<td class="n">{_age(b.first_seen, as_of)}</td><td class="w">{escape(b.detail)}</td></tr>'
    )


def _causes(report: Report) -> str:
    found = [cause for cause in CAUSES if any(b.cause == cause for b in report.open)]
    if not found:
        return ""
    rows = []
    for cause in found:
        of = [b for b in report.open if b.cause == cause]
        worth = ", ".join(
            f"{number(total(b.amount for b in of if b.currency == currency))} {currency}"
            for currency in sorted({b.currency for b in of if b.currency})
        )
        rows.append(
            f'<tr><th scope="row">{cause}</th><td class="n">{len(of):,}</td><td class="n">{worth or "–"}</td>'
            f'<td class="w">{escape(CAUSES[cause][1])}</td></tr>'
        )
    steps = "".join(f"<p><b>{step}</b>: {escape(meaning)}</p>" for step, meaning in STEPS.items())
    heads = ["Cause", "Count", "Amount", "Meaning"]
    return table("What the causes mean", heads, rows, len(found), "", numeric={"Count", "Amount"}) + (
        f'<div class="quiet">{steps}</div>'
    )


def _margin(report: Report) -> str:
    if not report.margins:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(m.tenant_id)}</th><td>{escape(m.service)}</td><td>{escape(m.currency)}</td>'
        f"{amount_cell(m.quantity)}{amount_cell(m.unknown_quantity)}{amount_cell(m.revenue)}"
        f'<td class="n">{number(m.cost)}{"" if m.cost_currency == m.currency else f" {escape(m.cost_currency)}"}</td>'
        f"{amount_cell(m.margin)}{amount_cell(m.percent, 2)}</tr>"
        for m in report.margins[:MOST_ROWS]
    ]
    foot = [
        f'<tr><th scope="row" colspan="2">Total</th><td>{currency}</td><td></td><td></td>{amount_cell(revenue)}'
        f"{amount_cell(cost)}{amount_cell(margin)}<td></td></tr>"
        for currency, (revenue, cost, margin) in totals(report.margins).items()
    ]
    heads = ["Tenant", "Service", "Currency", "Quantity with known cost", "Quantity without", "Revenue",
             "Provider's cost", "Margin", "%"]  # fmt: skip
    note = "Of usage whose provider's cost is known."
    return table("Margin", heads, rows, len(report.margins), note, foot, left=3)


def _witnesses(report: Report) -> str:
    if not report.witnesses:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(w.tenant_id)}</th><td>{escape(w.service)}</td><td>{instant(w.starts)}</td>'
        f"{amount_cell(w.said_quantity)}{amount_cell(w.counted_quantity)}{amount_cell(w.difference)}"
        f"<td>{escape(w.why)}</td></tr>"
        for w in report.witnesses[:MOST_ROWS]
    ]
    heads = ["Tenant", "Service", "From (UTC)", "Witness says", "Metered", "Difference", "Why"]
    numeric = {"Witness says", "Metered", "Difference"}
    note = "What gateways say themselves: informative, nobody is billed by it."
    return table("Witnesses", heads, rows, len(report.witnesses), note, numeric=numeric)


def _adjustments(report: Report) -> str:
    if not report.adjustments:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(a.tenant_id)}</th><td>{escape(a.service)}</td><td>{instant(a.window_start)}</td>'
        f'<td>{a.reason}</td><td class="n">{a.revision}</td>{amount_cell(a.quantity)}{amount_cell(a.amount)}'
        f"{amount_cell(a.change)}<td>{escape(a.currency)}</td><td>{instant(a.rated_at)}</td></tr>"
        for a in report.adjustments[:MOST_ROWS]
    ]
    heads = ["Tenant", "Service", "Hour (UTC)", "Reason", "Revision", "New quantity", "New amount", "Change",
             "Currency", "Rated (UTC)"]  # fmt: skip
    numeric = {"Revision", "New quantity", "New amount", "Change"}
    return table("Late and adjusted", heads, rows, len(report.adjustments), "", numeric=numeric)


def _quarantine(report: Report) -> str:
    if not report.quarantined:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(q.tenant_id or "unknown")}</th><td class="w">{escape(q.uri)}</td>'
        f'<td>{escape(q.place)}</td><td>{escape(q.reason)}</td><td class="w">{escape(q.detail)}</td></tr>'
        for q in report.quarantined[:MOST_ROWS]
    ]
    heads = ["Tenant", "File", "Place", "Reason", "What is wrong, and how to mend it"]
    return table("Quarantine", heads, rows, len(report.quarantined), "")


def table(
    title: str,
    heads: Sequence[str],
    rows: Sequence[str],
    count: int,
    note: str,
    foot: Iterable[str] = (),
    *,
    numeric: Iterable[str] = (),
    left: int | None = None,
) -> str:
    """A table in a box that scrolls by itself. ``left`` counts the columns before the numbers start."""
    if not rows:
        return f'<section><h2>{title}</h2><p class="quiet">None.</p></section>'
    right = set(numeric) | set(heads[left:] if left is not None else ())
    header = "".join(f'<th scope="col"{" class=n" * (head in right)}>{escape(head)}</th>' for head in heads)
    cut = (
        f" The first {len(rows):,} of {count:,}; all are in the workbook and the CSV files."
        if count > len(rows)
        else ""
    )
    caption = f"<caption>{escape(note + cut)}</caption>" if note or cut else ""
    below = "".join(foot)
    return (
        f'<section><h2>{title}</h2><div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
        f"<table>{caption}<thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f"{f'<tfoot>{below}</tfoot>' if below else ''}</table></div></section>"
    )


def amount_cell(value: Any, digits: int | None = None) -> str:
    return f'<td class="n">{"–" if value is None else number(value, digits)}</td>'


def number(value: Decimal, digits: int | None = None) -> str:
    """A number for people: thousands apart, in full, or with a fixed number of decimals where it has no more."""
    if digits is not None and rounded(value, digits) == value:
        return f"{rounded(value, digits):,f}"
    whole, _, decimals = plain(value).partition(".")
    sign = "-" if whole.startswith("-") else ""
    return f"{sign}{int(whole.lstrip('-')):,}{'.' if decimals else ''}{decimals}"


def instant(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def _age(since: datetime, now: datetime) -> str:
    hours = int((now - since).total_seconds() // 3600)
    return f"{hours // 24} d" if hours >= 48 else f"{max(hours, 0)} h"
