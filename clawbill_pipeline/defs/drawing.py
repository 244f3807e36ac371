"""Draws the asset graph as a picture: python -m clawbill_pipeline.defs.drawing > docs/asset-graph.svg

From the definitions alone, so that the picture can't differ from what Dagster runs (a test compares them). The layout
is a small layered one: an asset stands below all it depends on. No style of any other page; nothing but SVG text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

import dagster as dg

BOX_WIDTH, BOX_HEIGHT = 232, 58
COLUMN, ROW = 268, 104
MARGIN, LEGEND = 20, 46
#: Fill and border by group, in the order in which the groups come. Dark text on them reads on any page.
COLOURS = (
    ("#d7e8fb", "#4a90d9"), ("#d9f0d5", "#57a64a"), ("#e5dcf8", "#8a6bd1"), ("#fde5c8", "#d98e32"),
    ("#fad7df", "#d1587a"), ("#d3efee", "#3b9c98"), ("#eceae4", "#8f8a7a"),
)  # fmt: skip
#: Between black and white: lines on a page of either colour.
GREY = "#7d8590"


@dataclass(frozen=True)
class Asset:
    """What the picture says of an asset."""

    name: str
    group: str
    cadence: str
    kinds: tuple[str, ...]
    about: str
    parents: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where an asset, or the bend of an edge that passes by, lies: its row, and its middle counted in columns."""

    row: int
    middle: float


Edge = tuple[str, ...]


def assets(definitions: dg.Definitions) -> list[Asset]:
    """The assets of ``definitions`` by name. Dependencies outside of them are not drawn."""
    specs = sorted(definitions.resolve_all_asset_specs(), key=lambda spec: spec.key.to_user_string())
    names = {spec.key.to_user_string() for spec in specs}
    return [
        Asset(
            name=spec.key.to_user_string(),
            group=spec.group_name or "default",
            cadence=_cadence(spec.partitions_def),
            kinds=tuple(sorted(spec.kinds)),
            about=(spec.description or "").strip().partition("\n\n")[0],
            parents=tuple(sorted({dep.asset_key.to_user_string() for dep in spec.deps} & names)),
        )
        for spec in specs
    ]


def _cadence(partitions: dg.PartitionsDefinition[str] | None) -> str:
    match partitions:
        case dg.HourlyPartitionsDefinition():
            return "by hour"
        case dg.MonthlyPartitionsDefinition():
            return "by month"
        case None:
            return "unpartitioned"
        case _:
            return "partitioned"


def layout(drawn: Sequence[Asset]) -> tuple[dict[str, Place], list[Edge]]:
    """A place for every asset and every bend, and the edges from parent to child as the names of what they pass."""
    rows = _rows(drawn)
    edges: list[Edge] = [
        (parent, *(f"{parent} to {asset.name} {row}" for row in range(rows[parent] + 1, rows[asset.name])), asset.name)
        for asset in drawn
        for parent in asset.parents
    ]
    rows |= {bend: rows[edge[0]] + step for edge in edges for step, bend in enumerate(edge[1:-1], 1)}
    above: dict[str, list[str]] = {name: [] for name in rows}
    for upper, lower in (pair for edge in edges for pair in pairwise(edge)):
        above[lower].append(upper)
    places: dict[str, Place] = {}
    for row in range(max(rows.values(), default=-1) + 1):
        # In the order of what is above them, so that edges rarely cross; names decide where that is a tie.
        under = {name: _mean(places[upper].middle for upper in above[name]) for name in rows if rows[name] == row}
        here = sorted(under, key=lambda name: (under[name], name))
        # Side by side, and the whole row where its edges are straightest; in half columns, or they are almost straight.
        aside = [under[name] - number for number, name in enumerate(here) if above[name]]
        start = round(2 * _mean(aside)) / 2 if aside else -(len(here) - 1) / 2
        places |= {name: Place(row, start + number) for number, name in enumerate(here)}
    return places, edges


def _rows(drawn: Sequence[Asset]) -> dict[str, int]:
    """The row of each asset: below its lowest parent; one without parents right above its highest child."""
    rows: dict[str, int] = {}
    waiting = list(drawn)
    while waiting:
        ready = [asset for asset in waiting if all(parent in rows for parent in asset.parents)]
        if not ready:
            raise ValueError(
                f"the assets {', '.join(asset.name for asset in waiting)} depend on each other in a circle"
            )
        rows |= {asset.name: 1 + max((rows[parent] for parent in asset.parents), default=-1) for asset in ready}
        waiting = [asset for asset in waiting if asset.name not in rows]
    for asset in drawn:
        below = [rows[child.name] for child in drawn if asset.name in child.parents]
        if below and not asset.parents:
            rows[asset.name] = min(below) - 1
    return rows


def _mean(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return sum(found) / len(found) if found else 0.0


def draw(definitions: dg.Definitions) -> str:
    """The picture, as the text of an SVG file."""
    drawn = assets(definitions)
    places, edges = layout(drawn)
    groups = list(dict.fromkeys(asset.group for asset in sorted(drawn, key=lambda asset: places[asset.name].row)))
    colours = {group: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}
    left = min((place.middle for place in places.values()), default=0.0)
    right = max((place.middle for place in places.values()), default=0.0)
    rows = max((place.row for place in places.values()), default=0)
    width = round((right - left) * COLUMN + BOX_WIDTH + 2 * MARGIN)
    height = rows * ROW + BOX_HEIGHT + 2 * MARGIN + LEGEND

    def middle(name: str) -> tuple[int, int]:
        place = places[name]
        x = MARGIN + BOX_WIDTH / 2 + (place.middle - left) * COLUMN
        return round(x), MARGIN + LEGEND + place.row * ROW + BOX_HEIGHT // 2

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" font-family="system-ui, Segoe UI, Roboto, Helvetica, DejaVu Sans, sans-serif">',
        "<title>The asset graph of clawbill</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{GREY}"/></marker></defs>',
        *_legend(colours),
        *(_edge([middle(name) for name in edge]) for edge in edges),
        *(line for asset in drawn for line in _box(asset, *middle(asset.name), *colours[asset.group])),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _legend(colours: dict[str, tuple[str, str]]) -> Iterator[str]:
    x = MARGIN
    for group, (fill, border) in colours.items():
        width = 8 * len(group) + 16
        yield f'<rect x="{x}" y="{MARGIN}" width="{width}" height="22" rx="11" fill="{fill}" stroke="{border}"/>'
        yield _text(x + width // 2, MARGIN + 15, group, size=12)
        x += width + 10


def _edge(points: Sequence[tuple[int, int]]) -> str:
    half = BOX_HEIGHT // 2
    (x, y), *rest = points
    path = f"M{x} {y + half}"
    for number, (to_x, to_y) in enumerate(rest, 1):
        start, end = y + half, to_y - half
        bow = (end - start) // 2
        path += f" C{x} {start + bow} {to_x} {end - bow} {to_x} {end}"
        if number < len(rest):
            path += f" V{to_y + half}"
        x, y = to_x, to_y
    return f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="1.6" marker-end="url(#tip)"/>'


def _box(asset: Asset, x: int, y: int, fill: str, border: str) -> Iterator[str]:
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    yield f"<g><title>{escape(asset.about)}</title>"
    yield (
        f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{fill}" '
        f'stroke="{border}" stroke-width="1.6"/>'
    )
    yield _text(x, y - 4, asset.name, size=14, weight="600")
    yield _text(x, y + 16, f"{asset.cadence} · {', '.join(asset.kinds)}", size=11) + "</g>"


def _text(x: int, y: int, text: str, *, size: int, weight: str = "400") -> str:
    where = f'x="{x}" y="{y}" font-size="{size}" font-weight={quoteattr(weight)}'
    return f'<text {where} fill="#1c2024" text-anchor="middle">{escape(text)}</text>'


if __name__ == "__main__":
    from clawbill_pipeline.definitions import defs

    # In bytes: the picture is the same whatever a terminal is set to.
    sys.stdout.buffer.write(draw(defs).encode())
