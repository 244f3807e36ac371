"""Reading a catalogue: no digit lost, and every refusal names file, line, key and fix. Prices have a file."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.catalog import Catalog, CatalogError, UnknownService, UnknownTenant, load, parse
from clawbill_pipeline.catalog.models import Calendar
from clawbill_pipeline.cli import cli
from clawbill_pipeline.settings import STARTER

GOOD = """\
version: 1
start: 2026-01-01T00:00:00Z
calendar: {metering_lag: 10m}
sources:
  - {name: app, kind: json_lines, path: usage}
services:
  api.calls: {unit: call}
  tokens:
    unit: token
    dimensions: [provider, model]
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices:
          api.calls: {model: per_unit, unit_amount: 0.000000000001}
          tokens: {model: per_unit, unit_amount: 1}
          tokens:mockai/large: {model: per_unit, unit_amount: 2}
      - effective_from: 2026-07-01T00:00:00+02:00
        prices:
          api.calls: {model: per_unit, unit_amount: 0.5}
          tokens: {model: per_unit, unit_amount: 3}
tenants:
  acme: {rate_card: standard}
  globex:
    rate_card: standard
    prices:
      tokens: {model: per_unit, unit_amount: 9}
"""


def refusal(text: str) -> str:
    with pytest.raises(CatalogError) as refused:
        parse(text, name="bills.yaml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("version: 1\n", "version: 1\nliv: true\n", 2, "liv: is no key that the catalogue knows"),
        ("{unit: call}", "{unit: call, meterr: x}", 7, "services.api.calls.meterr: is no key"),
        ("{unit: call}", "{}", 7, "services.api.calls.unit: is missing; add it"),
        ("version: 1", "version: 3", 1, "version: Input should be 1"),
        ("start: 2026-01-01T00:00:00Z", "start: 2026-01-01T00:30:00Z", 2, "start: must be on a full UTC hour"),
        ("start: 2026-01-01T00:00:00Z", "start: 2026-01-01T00:00:00", 2, "start: give a time zone"),
        ("metering_lag: 10m", "metering_lag: ten", 3, "calendar.metering_lag: write a duration as"),
        ("metering_lag: 10m", "metering_lag: 999999999999d", 3, "write a duration as"),
        ("metering_lag: 10m", "metering_lag: 2h", 3, "calendar.late_window: is shorter than metering_lag"),
        ("metering_lag: 10m", "stripe_grace: 73h", 3, "calendar.stripe_grace: is longer than the 72h"),
        ("kind: json_lines", "kind: jsonlines", 5, "sources.0: Input tag 'jsonlines'"),
        ("    dimensions: [provider, model]", "    dimensions: [model, model]", 8, "a dimension is named twice"),
        ("    dimensions: [provider, model]", "    dimensions: [model]\n    bill_by: quantity", 8, "for each priced"),
        ("{unit: call}", "{unit: call, quantity_decimals: 2}", 7, "only with bill_by: quantity"),
        ("{unit: call}", "{unit: call, meter: m}\n  b: {unit: x, meter: m}", 6, "services: m is used twice"),
        ("  api.calls: {unit", "  Api Calls: {unit", 7, "services.Api Calls: String should match pattern"),
        ("currency: USD", "currency: DOLLAR", 13, "'DOLLAR' is not a three-letter currency code"),
        ("unit_amount: 0.5", "unit_amount: 0.5.5", 22, "unit_amount: '0.5.5' is not a number"),
        ("unit_amount: 0.5", "unit_amount: .nan", 22, "unit_amount"),
        ("unit_amount: 0.5", "unit_amount: 0.0000000000001", 22, "more than 12 decimal places"),
        ("          tokens: {model: per_unit, unit_amount: 3}\n", "", 21, "no price for tokens; every"),
        ("tokens:mockai/large", "tokens:large", 19, "(provider/model) in their order"),
        ("tokens:mockai/large", "token", 19, "prices no service of the catalogue; there is api.calls, tokens"),
        ("2026-07-01T00:00:00+02:00", "2025-07-01T00:00:00+02:00", 12, "in order of effective_from"),
        ("acme: {rate_card: standard}", "acme: {rate_card: gold}", 25, "'gold' does not exist; there is standard"),
        ("acme: {rate_card: standard}", "acme: {rate_card: standard, time_zone: CET+1}", 25, "is no IANA time zone"),
        ("acme: {rate_card: standard}", "acme: {rate_card: standard, anchor_day: 32}", 25, "tenants.acme.anchor_day"),
        ("acme: {rate_card: standard}", "acme: {rate_card: standard, anchor_day: 1.5}", 25, "tenants.acme.anchor_day"),
        ("acme: {rate_card: standard}", "-acme: {rate_card: standard}", 25, "tenants.-acme: String should match"),
        ("  globex:", "  acme:", 26, "'acme' is there twice (first on line 25); keep one"),
        ("  globex:\n", "  globex:\n    prices: {}\n", 29, "'prices' is there twice (first on line 27)"),
        ("version: 1", "version: [1", 2, "expected ',' or ']'"),
        ("version: 1", "version: 1\n? [a, b]\n: c", 2, "a key must be a plain word"),
        ("version: 1", "version: 1\nloop: &loop {again: *loop}", 1, "stands inside its own anchor"),
        ("version: 1", "version: 1\nmore: *nowhere", 2, "found undefined alias"),
        ("version: 1", "version: 1\n<<: 3", 2, "expected a mapping"),
        ("currency: USD", "currency: U\x07D", 13, "U+0007"),
    ],
)  # fmt: skip
def test_each_refusal_names_its_file_line_and_key(old: str, new: str, line: int, says: str) -> None:
    assert GOOD.count(old) >= 1
    said = refusal(GOOD.replace(old, new, 1))
    assert said.splitlines()[0].startswith(f"bills.yaml:{line}: ")
    assert says in said


PER_UNIT = "{model: per_unit, unit_amount: 1}"
BANDS = f"[{{name: day, from: '00:00', to: '24:00', price: {PER_UNIT}}}]"


@pytest.mark.parametrize(
    ("price", "says"),
    [
        ("{model: percentage, percent: 1, fixed_per_event: 0.3, max_per_event: 0}",
         "fixed_per_event, max_per_event: a request carries a quantity and no events; meter the events as a service"),
        ("{model: percentage, percent: 1, free_events: 3}", "free_events: a request carries"),
        ("{model: capacity, tiers: [{amount: 1, limits: {cpu: 2, gb: 8}}, {amount: 3}]}", "several units (cpu, gb)"),
        (f"{{model: matrix, cells: {{a: {PER_UNIT}}}}}", "a matrix needs dimensions in the service's name"),
        (f"{{model: time_of_use, bands: {BANDS}}}", "needs the band in the service's name (service:day)"),
    ],
)  # fmt: skip
def test_a_price_that_one_quantity_can_never_be_rated_by_is_refused(price: str, says: str) -> None:
    old = "api.calls: {model: per_unit, unit_amount: 0.5}"
    said = refusal(GOOD.replace(old, f"api.calls: {price}"))
    assert said.startswith("bills.yaml:22: rate_cards.standard.versions.1.prices.api.calls: ")
    assert says in said
    said = refusal(GOOD.replace("      tokens: {model: per_unit, unit_amount: 9}", f"      api.calls: {price}"))
    assert said.startswith("bills.yaml:29: tenants.globex.prices.api.calls: ")


@pytest.mark.parametrize(
    ("price", "says"),
    [
        (f"{{model: matrix, cells: {{mockai/large: {PER_UNIT}, small: {PER_UNIT}}}}}",
         "cell 'small' can never be reached: it does not name provider/model in their order"),
        ("{model: matrix, cells: {mockai/large: {model: percentage, percent: 1, min_per_event: 1}}}", "min_per_event"),
        (f"{{model: matrix, cells: {{mockai/large: {PER_UNIT}}}, "
         "otherwise: {model: percentage, percent: 1, fixed_per_event: 1}}", "fixed_per_event"),
        (f"{{model: time_of_use, bands: {BANDS}}}", "the one dimension band"),
    ],
)  # fmt: skip
def test_nor_one_of_its_parts_nor_with_dimensions_that_do_not_fit(price: str, says: str) -> None:
    assert says in refusal(GOOD.replace("tokens: {model: per_unit, unit_amount: 3}", f"tokens: {price}"))


def test_what_the_dimensions_tell_is_accepted() -> None:
    text = GOOD.replace("{unit: call}", "{unit: call, dimensions: [band]}")
    parse(text.replace("{model: per_unit, unit_amount: 0.5}", f"{{model: time_of_use, bands: {BANDS}}}"))
    parse(text.replace("{model: per_unit, unit_amount: 0.5}", f"{{model: matrix, cells: {{a: {PER_UNIT}}}}}"))
    capacity = "{model: capacity, tiers: [{amount: 1, limits: {cpu: 2}}, {amount: 3}]}"
    parse(GOOD.replace("{model: per_unit, unit_amount: 0.5}", capacity))


def test_all_faults_come_at_once_in_the_order_of_the_file() -> None:
    said = refusal(GOOD.replace("{unit: call}", "{units: call}").replace("USD", "DOLLAR")).splitlines()
    assert [line.split(":")[1] for line in said] == ["7", "7", "13"]


def test_peers_14_a_grace_shorter_than_the_late_window_cannot_be_configured() -> None:
    said = refusal(GOOD.replace("{metering_lag: 10m}", "\n  late_window: 3d\n  stripe_grace: 2d"))
    assert said.startswith("bills.yaml:5: calendar.stripe_grace: stripe_grace is shorter than late_window")


@pytest.mark.parametrize(
    ("window", "grace", "leaves_time"),
    [("45m", "1h", True), ("46m", "1h", False), ("1h", "1h", False), ("3d", "3d", False), ("70h", "72h", True)],
)
def test_a_late_window_that_leaves_no_time_to_send_is_doubtful(window: str, grace: str, leaves_time: bool) -> None:
    calendar = parse(GOOD.replace("metering_lag: 10m", f"late_window: {window}, stripe_grace: {grace}")).calendar
    assert bool(calendar.warnings()) != leaves_time
    for what, remedy in calendar.warnings():
        assert what.startswith("calendar.late_window: ends less than 15 minutes before stripe_grace does")
        assert remedy.startswith("shorten late_window, or raise stripe_grace")


def test_nothing_is_doubtful_in_what_one_starts_with() -> None:
    assert Calendar().warnings() == load(STARTER).calendar.warnings() == []


def test_a_catalogue_that_is_doubtful_passes_with_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "bills.yaml"
    file.write_text(GOOD.replace("metering_lag: 10m", "late_window: 1h"))
    said = CliRunner().invoke(cli, ["catalog", "check", str(file)])
    assert (said.exit_code, said.stdout) == (0, f"{file}: 2 tenants, 2 services, 1 rate cards, 1 sources\n")
    assert said.stderr.startswith(f"{file}: warning: calendar.late_window: ends less than 15 minutes")
    file.write_text(GOOD)
    assert CliRunner().invoke(cli, ["catalog", "check", str(file)]).stderr == ""


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "word", "- a\n- b", "a: b: c"])
def test_what_is_no_catalogue_is_refused(text: str) -> None:
    assert refusal(text).startswith("bills.yaml:1: ")


@given(st.decimals(min_value=0, max_value=Decimal(10) ** 20, places=12))
def test_no_digit_of_a_yaml_number_is_lost(price: Decimal) -> None:
    catalog = parse(GOOD.replace("0.5}", f"{price:f}}}"))
    read: Any = catalog.rate_cards["standard"].versions[1].prices["api.calls"]
    assert read.unit_amount == price


def test_words_that_yaml_takes_for_something_else_stay_words() -> None:
    text = GOOD.replace(
        "acme: {rate_card: standard}", 'no: {rate_card: standard, name: "010"}\n  2026: {rate_card: standard}'
    )
    assert list(parse(text).tenants) == ["no", "2026", "globex"]


def test_merged_mappings_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    text = GOOD.replace("acme: {", "acme: &base {").replace(
        "  globex:\n", "  globex:\n    <<: *base\n    anchor_day: 3\n"
    )
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("    rate_card: standard\n", "").replace("\n", "\r\n").encode())
    globex = load(file).tenants["globex"]
    assert (globex.rate_card, globex.anchor_day) == ("standard", 3)


def test_a_file_that_cannot_be_read_says_how_to_name_one(tmp_path: Path) -> None:
    for wrong in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(CatalogError, match="CLAWBILL_CATALOG"):
            load(wrong)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"version: \xff")
    with pytest.raises(CatalogError, match=r"latin\.yaml: can't be read"):
        load(latin)


def test_relative_paths_start_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text(GOOD)
    assert load(tmp_path / "catalog.yaml").folder == tmp_path.resolve()


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_bytes_give_a_catalogue_or_a_refusal(noise: bytes | str) -> None:
    text = noise if isinstance(noise, str) else noise.decode("utf-8", "replace")
    for document in (text, GOOD + text, GOOD.replace("standard}", text, 1)):
        try:
            parse(document)
        except CatalogError as refused:
            said = str(refused)
        else:
            continue
        assert said.startswith("catalog.yaml:")


def test_the_price_that_holds_is_the_most_specific_at_its_time() -> None:
    catalog = parse(GOOD)

    def price(tenant: str, service: str, month: int) -> Decimal:
        found: Any = catalog.price_for(tenant, service, catalog.start.replace(month=month))
        return found.price.unit_amount

    assert price("acme", "tokens:mockai/large", 1) == 2
    assert price("acme", "tokens:mockai/small", 1) == 1
    assert price("acme", "tokens:mockai/large", 8) == 3
    assert price("globex", "tokens:mockai/large", 1) == 9
    assert catalog.price_for("acme", "api.calls", catalog.start).version == "standard@2026-01-01T00:00:00Z"
    with pytest.raises(UnknownTenant, match="initech"):
        catalog.price_for("initech", "tokens", catalog.start)
    with pytest.raises(UnknownService, match="no price for service 'disk'"):
        catalog.price_for("acme", "disk", catalog.start)
    with pytest.raises(UnknownService, match="2025-12-31"):
        catalog.price_for("acme", "tokens", catalog.start - timedelta(seconds=1))


def test_a_version_begins_at_its_very_moment() -> None:
    card = parse(GOOD).rate_cards["standard"]
    start = card.versions[1].effective_from  # midnight in Berlin, 22:00 in UTC
    assert start.isoformat() == "2026-06-30T22:00:00+00:00"
    assert card.version_at(start) is card.versions[1]
    assert card.version_at(start - timedelta(microseconds=1)) is card.versions[0]


def test_meters_have_names_that_stripe_takes() -> None:
    catalog = parse(GOOD.replace("{unit: call}", "{unit: call, meter: calls}"))
    assert [catalog.meter(name) for name in ("api.calls", "tokens")] == ["calls", "clawbill_tokens"]


def test_editors_get_a_schema_that_agrees_with_the_models() -> None:
    schema = Catalog.model_json_schema()
    editor = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for text in (GOOD, STARTER.read_text()):
        document = json.loads(json.dumps(yaml.load(text, yaml.BaseLoader)))
        document["version"] = 1
        document.pop("live", None)
        for tenant in document["tenants"].values():
            tenant.pop("anchor_day", None)
        assert not [error.message for error in editor.iter_errors(document)]
        document["calendar"]["metering_lag"] = "soon"
        document["services"]["api.calls"] = {"unit": "call", "colour": "red"}
        assert len(list(editor.iter_errors(document))) == 2


def test_only_one_source_can_take_what_is_posted() -> None:
    two = GOOD.replace("{name: app, kind: json_lines, path: usage}", "{name: a, kind: http}\n  - {name: b, kind: http}")
    assert refusal(two) == "bills.yaml:4: sources: only one source can be of kind http: there is one POST /usage"


def test_the_same_text_is_read_once_and_placed_where_its_file_is(tmp_path: Path) -> None:
    assert parse(GOOD) is parse(GOOD)
    placed = parse(GOOD).at(tmp_path)
    assert (placed.folder, parse(GOOD).folder) == (tmp_path, Path())
