"""The picture of the asset graph: what the README shows is what Dagster runs."""

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from clawbill_pipeline.definitions import defs
from clawbill_pipeline.defs.drawing import Asset, assets, draw, layout

PICTURE = Path(__file__).parents[2] / "docs" / "asset-graph.svg"


def asset(name: str, *parents: str) -> Asset:
    return Asset(name, group="g", cadence="by hour", kinds=(), about="", parents=parents)


def test_the_picture_in_the_docs_is_the_graph_of_now():
    command = "python -m clawbill_pipeline.defs.drawing > docs/asset-graph.svg"
    assert PICTURE.read_text(encoding="utf-8") == draw(defs), f"the graph has changed: {command}"


def test_every_asset_and_dependency_is_drawn():
    svg = ElementTree.fromstring(draw(defs))
    texts = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    drawn = assets(defs)
    assert {one.name for one in drawn} <= texts
    assert {"usage_events", "metered_usage", "rated_usage", "stripe_usage_records", "usage_reconciliation"} <= texts
    arrows = [path for path in svg.iter("{http://www.w3.org/2000/svg}path") if path.get("marker-end")]
    assert len(arrows) == sum(len(one.parents) for one in drawn) > 0


def test_an_asset_stands_below_all_it_depends_on():
    places, edges = layout(assets(defs))
    for edge in edges:
        assert all(places[lower].row == places[upper].row + 1 for upper, lower in pairwise(edge))


def test_nothing_lies_on_something_else():
    places, _ = layout([asset("a"), asset("b", "a"), asset("c", "a"), asset("d", "b", "c"), asset("e", "a", "d")])
    spots = [(place.row, place.middle) for place in places.values()]
    assert len(set(spots)) == len(spots)


def test_a_long_edge_passes_by_the_assets_between():
    places, edges = layout([asset("a"), asset("b", "a"), asset("c", "b", "a")])
    (long,) = [edge for edge in edges if edge[0] == "a" and edge[-1] == "c"]
    assert len(long) == 3
    assert places[long[1]].row == places["b"].row
    assert places[long[1]].middle != places["b"].middle


def test_an_asset_without_parents_stands_right_above_its_child():
    places, _ = layout([asset("a"), asset("b", "a"), asset("c", "b", "late"), asset("late")])
    assert places["late"].row == places["b"].row == 1


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="a, b depend on each other in a circle"):
        layout([asset("a", "b"), asset("b", "a")])


def test_order_of_definition_does_not_matter():
    one = [asset("a"), asset("b", "a"), asset("c", "a")]
    assert layout(one)[0] == layout(one[::-1])[0]
