"""deploy/observability against the real /metrics: rules and panels ask for what is there, and all is documented."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from http import HTTPStatus
from itertools import product
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.money import currency_code, exponent
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.web.serving import served
from clawbill_pipeline_tests.web.test_metrics import add, settings_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
UNIT_TESTS = Path(__file__).with_name("alerts_unit_tests.yaml")
RULES = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]  # fmt: skip
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{f"{p['title']} {t['refId']}": t["expr"] for p in PANELS for t in p["targets"]},
}

#: The currencies with a threshold of their own, by that.
DEARER = {
    int(threshold): codes.split("|")
    for codes, threshold in re.findall(r'currency=~"(.*?)"}\) <= (\d+)', EXPRESSIONS["ClawbillBreaksOpen"])
}


def selectors(part: Any) -> Iterator[promql_parser.VectorSelector]:
    """Every selection of series in an expression."""
    match part:
        case promql_parser.VectorSelector():
            yield part
        case promql_parser.MatrixSelector():
            yield part.vector_selector
        case promql_parser.BinaryExpr():
            yield from selectors(part.lhs)
            yield from selectors(part.rhs)
        case promql_parser.Call():
            for argument in part.args:
                yield from selectors(argument)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from selectors(part.expr)
        case promql_parser.NumberLiteral():
            return
        case _:
            raise TypeError(f"{type(part).__name__} is nothing that this test knows")


@pytest.fixture(scope="module")
def expositions(
    postgres_server: AnyServer, ledger_template: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """The real /metrics where nothing ever happened, and where the ledger has a row for what is else not there."""
    texts = []
    with fresh_database(postgres_server, template=ledger_template) as name:
        url = postgres_server.url(name)
        for happened in (False, True):
            ledger = Ledger(url)
            if happened:
                add(ledger, "metered_hours")
                add(ledger, "reconciliations", waterfall="[]")
                add(ledger, "breaks", currency="USD")
            with served(create_app(settings_of(url, tmp_path_factory.mktemp("web")), ledger, live=False)) as address:
                if happened:
                    httpx.post(f"{address}/usage", trust_env=False)
                texts.append(httpx.get(f"{address}/metrics", trust_env=False).text)
            ledger.dispose()
    return texts[0], texts[1]


@pytest.fixture(scope="module")
def exposition(expositions: tuple[str, str]) -> dict[str, dict[str, set[str]]]:
    """Every sample's name on the real /metrics, with its labels and their values."""
    _, text = expositions
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        assert family.samples, f"{family.name} has no sample here, so nothing can be said of its labels"
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    # What there is only once it has happened: an answer of each kind, why a webhook request was refused, a currency.
    found["clawbill_breaks_open_amount"]["currency"] |= {code for codes in DEARER.values() for code in codes}
    found["clawbill_ingest_requests_total"]["status"] |= {str(status.value) for status in HTTPStatus}
    found["clawbill_webhook_requests_total"]["result"] |= set(
        re.findall(r'HTTPStatus\.\w+, "(\w+)"', (ROOT / "clawbill_pipeline" / "web" / "webhook.py").read_text())
    )
    return found


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_asks_for_metrics_and_labels_that_exist(
    name: str, exposition: dict[str, dict[str, set[str]]]
) -> None:
    found = list(selectors(promql_parser.parse(EXPRESSIONS[name])))
    assert found
    for selector in found:
        assert selector.name in exposition, f"{selector.name} is not on /metrics"
        assert faults(selector, exposition[str(selector.name)]) == []
    by = re.findall(r"\bby \(([^)]*)\)", EXPRESSIONS[name])
    labels = set().union(*(exposition[str(selector.name)] for selector in found))
    assert {label.strip() for part in by for label in part.split(",")} <= labels


def faults(selector: promql_parser.VectorSelector, labels: dict[str, set[str]]) -> list[str]:
    """Labels, and values of them, that a metric with these ``labels`` never has."""
    found = []
    for matcher in selector.matchers.matchers:
        # Of a pattern, each of its words.
        for value in matcher.value.split("|"):
            if not any(re.fullmatch(value, there) for there in labels.get(matcher.name, ())):
                found.append(f"{matcher.name}={value}")
    return found


def test_the_test_sees_what_is_wrong(exposition: dict[str, dict[str, set[str]]]) -> None:
    (wrong,) = selectors(promql_parser.parse('sum(rate(clawbill_no_such_total{state="x"}[5m])) > 0'))
    assert wrong.name not in exposition
    (odd,) = selectors(promql_parser.parse('clawbill_outbox_rows{state=~"planned|sent", stat="x", parked="false"}'))
    assert sorted(faults(odd, exposition["clawbill_outbox_rows"])) == ["stat=x", "state=sent"]


#: Nothing is wrong where these are not there: no break is open, nothing can be posted, no request was ever refused.
SILENT = {"clawbill_breaks_open_amount", "clawbill_ingest_waiting_age_seconds", "clawbill_ingest_requests_total"}


def test_who_never_did_anything_is_told_of(expositions: tuple[str, str]) -> None:
    there = {
        sample.name for family in text_string_to_metric_families(expositions[0]) for sample in family.samples
    }  # fmt: skip
    asked, told = set(), set()
    for rule in RULES:
        names = {str(selector.name) for selector in selectors(promql_parser.parse(rule["expr"]))}
        asked |= names
        if rule["expr"] in {f"absent({name})" for name in names}:
            assert re.fullmatch(r"\d+h", rule["for"]), "a new installation has a while to begin"
            told |= names
    assert told == asked - there - SILENT
    assert "clawbill_ledger_up" in there


def test_100_of_a_currency_without_a_minor_unit_are_no_ticket() -> None:
    named = [code for codes in DEARER.values() for code in codes]
    assert len(set(named)) == len(named)
    assert [currency_code(code) for code in named] == named
    assert {code for code in map("".join, product(ascii_uppercase, repeat=3)) if exponent(code) == 0} <= set(named)
    assert min(DEARER) > 100


def test_every_metric_is_documented_and_watched(exposition: dict[str, dict[str, set[str]]]) -> None:
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(clawbill_\w+)` \|([^|]*)\|", page, re.MULTILINE))
    families: dict[str, set[str]] = {}
    for name, labels in exposition.items():
        families.setdefault(re.sub(r"_(bucket|count|sum)$", "", name), set()).update(set(labels) - {"le"})
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows.items()} == families
    asked = {selector.name for expr in EXPRESSIONS.values() for selector in selectors(promql_parser.parse(expr))}
    assert set(families) == {str(name).removesuffix("_bucket") for name in asked}, "nobody looks at one, or it is not"


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "action"}, rule["alert"]
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(Clawbill\w+)`", page)) == {rule["alert"] for rule in RULES}


def test_the_dashboard_can_be_imported_anywhere() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    sources = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert sources == {"${datasource}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource"]
    squares: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not covered & squares, f"{panel['title']} lies on another panel"
        squares |= covered


@pytest.fixture
def promtool(tmp_path: Path) -> Callable[..., None]:
    """Runs promtool beside the files, and beside ours; fails when it does."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    folder = shutil.copytree(FOLDER, tmp_path / "prometheus")
    (folder / "clawbill-metrics-token").touch()
    shutil.copy(UNIT_TESTS, folder)

    def run(*words: str) -> None:
        done = subprocess.run(
            [program, *words], cwd=folder, env=os.environ, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def test_prometheus_itself_takes_the_files(promtool: Callable[..., None]) -> None:
    promtool("check", "config", "prometheus.yaml")


def test_prometheus_itself_alerts_as_the_rules_are_meant(promtool: Callable[..., None]) -> None:
    promtool("test", "rules", UNIT_TESTS.name)
