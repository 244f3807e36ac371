"""CLAWBILL_ALERTS: what it can say, and that a faulty one is refused without its secrets."""

from __future__ import annotations

from decimal import Decimal

import pytest

from clawbill_pipeline.alerts.routes import parse_routes
from clawbill_pipeline.settings import Settings, SettingsError

SECRET = "T0KEN-A/T0KEN-B"


def test_lines_and_semicolons() -> None:
    routes = parse_routes(
        "# finance first\n"
        "team:finance>=100 USD=mailto://u:p@example.com?a=1&b=2; team:data-engineering=slack://A/B/C\n"
        "\n"
        "* >= 0.5 = json://example.com/x;y ;*=json://example.com/z;team:finance>=100USD=json://example.com/2;"
    )
    assert [(r.name, r.owner, r.at_least, r.currency) for r in routes] == [
        ("team:finance>=100USD", "team:finance", Decimal(100), "USD"),
        ("team:data-engineering", "team:data-engineering", None, None),
        ("*>=0.5", "*", Decimal("0.5"), None),
        ("*", "*", None, None),
        ("team:finance>=100USD #2", "team:finance", Decimal(100), "USD"),
    ]
    assert [r.address.get_secret_value() for r in routes] == [
        "mailto://u:p@example.com?a=1&b=2",
        "slack://A/B/C",
        "json://example.com/x;y",
        "json://example.com/z",
        "json://example.com/2",
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"slack://{SECRET}",
        f"team:finance={SECRET}",
        f"team:finance>100=slack://{SECRET}",
        f"team:finance>=lots=slack://{SECRET}",
        f"*=json://x; team:finance>=NaN=slack://{SECRET}",
        f"=slack://{SECRET}",
    ],
)
def test_a_faulty_entry_is_named_by_its_number_alone(text: str) -> None:
    with pytest.raises(SettingsError, match=r"entry [12]") as caught:
        parse_routes(text)
    assert SECRET not in str(caught.value)
    assert "T0KEN" not in repr(caught.value.__context__)


def test_addresses_show_nowhere() -> None:
    text = f"*=slack://{SECRET}"
    assert SECRET not in repr(parse_routes(text))
    assert SECRET not in repr(Settings.from_env({"CLAWBILL_ALERTS": text}))
