"""Charts as inline SVG: widths in percent and text in CSS pixels, so they fit any screen. No numbers are made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from html import escape

from clawbill_pipeline.reporting.report import Bar, Day

Shown = Callable[[Decimal], str]

_ROW = 46


def waterfall_svg(bars: Sequence[Bar], shown: Shown, title: str) -> str:
    """Horizontal waterfall: levels start at zero, changes where the one before ended; each bar is labelled."""
    spans = _spans(bars)
    low = min(0.0, *(min(span) for span in spans))
    high = max(0.0, *(max(span) for span in spans))
    width = (high - low) or 1.0

    def at(value: float) -> str:
        return f"{(value - low) / width * 100:.3f}%"

    parts = []
    for row, (bar, (start, end)) in enumerate(zip(bars, spans, strict=True)):
        y = row * _ROW
        kind = "level" if bar.is_level else ("gain" if bar.amount >= 0 else "loss")
        amount = shown(bar.amount) if bar.is_level or bar.amount <= 0 else f"+{shown(bar.amount)}"
        length = f"{abs(end - start) / width * 100:.3f}%"
        parts.append(
            f'<text x="0" y="{y + 15}">{escape(bar.label)}</text>'
            f'<text x="100%" y="{y + 15}" class="amount">{escape(amount)}</text>'
            f'<rect x="0" y="{y + 22}" width="100%" height="14" class="track"/>'
            f'<rect x="{at(min(start, end))}" y="{y + 22}" width="{length}" height="14" class="{kind}"/>'
        )
        if bar.amount and not bar.is_level:  # a hair line keeps a change of a cent in sight
            x = at(min(start, end))
            parts.append(f'<line x1="{x}" x2="{x}" y1="{y + 18}" y2="{y + 40}" class="{kind}"/>')
    told = "; ".join(f"{bar.label} {shown(bar.amount)}" for bar in bars)
    return _svg(parts, len(bars) * _ROW, title, told)


def _spans(bars: Sequence[Bar]) -> list[tuple[float, float]]:
    spans = []
    level = 0.0
    for bar in bars:
        start, end = (0.0, float(bar.amount)) if bar.is_level else (level, level + float(bar.amount))
        spans.append((start, end))
        level = end
    return spans


def days_svg(days: Sequence[Day], shown: Shown, title: str) -> str:
    """A column a day; the first, the last and the highest are labelled."""
    return columns_svg([(day.day.isoformat(), day.amount) for day in days], shown, title)


def columns_svg(columns: Sequence[tuple[str, Decimal]], shown: Shown, title: str) -> str:
    """A column for each of ``columns``, which have a name; the first, the last and the highest are labelled."""
    high = max((float(amount) for _, amount in columns), default=0.0) or 1.0
    step = min(100 / max(len(columns), 1), 8)
    parts = []
    for number, (name, amount) in enumerate(columns):
        height = max(float(amount), 0.0) / high * 90
        parts.append(
            f'<rect x="{number * step:.3f}%" y="{110 - height:.2f}" width="{step * 0.8:.3f}%" height="{height:.2f}"'
            f' class="level"><title>{name}: {escape(shown(amount))}</title></rect>'
        )
    if columns:
        name, amount = max(columns, key=lambda column: column[1])
        parts.append(f'<text x="0" y="12">highest: {name}, {escape(shown(amount))}</text>')
        first, last = columns[0][0], columns[-1][0]
        parts.append(f'<text x="0" y="128">{first if first == last else f"{first} to {last}"}</text>')
    told = "; ".join(f"{name} {shown(amount)}" for name, amount in columns)
    return _svg(parts, 134, title, told)


def _svg(parts: Sequence[str], height: int, title: str, told: str) -> str:
    label = escape(f"{title}: {told}", quote=True)
    return f'<svg role="img" aria-label="{label}" width="100%" height="{height}">{"".join(parts)}</svg>'
