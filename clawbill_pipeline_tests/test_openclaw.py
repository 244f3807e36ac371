"""The client of OpenClaw's contract: what it sends, what it takes for a rating, what it refuses and why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from clawbill_pipeline.money import plain
from clawbill_pipeline.openclaw import Answer, OpenClaw, OpenClawError, read_answer
from clawbill_pipeline_tests.rating.scripted import Scripted, scripted

TOKEN = "oc-secret-0451"


def read(body: Any, currency: str = "USD", **more: Any) -> Answer:
    return read_answer(body if isinstance(body, str) else json.dumps(body), currency, Decimal("1.5"), **more)


def refused(body: Any, currency: str = "USD") -> str:
    with pytest.raises(OpenClawError) as error:
        read(body, currency)
    assert not error.value.retryable
    assert "\0" not in error.value.answer + str(error.value)
    return str(error.value)


def ask(server: Scripted, call: Callable[[Any], Awaitable[Any]], **more: Any) -> Any:
    """One call in a session with the server."""

    async def main() -> Any:
        async with OpenClaw(server.url, SecretStr(TOKEN), **more).session() as session:
            return await call(session)

    return asyncio.run(main())


def rate(server: Scripted, quantity: str = "1", **more: Any) -> Answer:
    answer: Answer = ask(server, lambda s: s.rate("acme", "calls", Decimal(quantity), "USD"), **more)
    return answer


@pytest.mark.parametrize(
    ("cents", "currency", "amount"),
    [
        ("250", "USD", "2.5"), ('"250"', "USD", "2.5"), ("0.04", "USD", "0.0004"), ('"1e-3"', "USD", "0.00001"),
        ("80", "JPY", "80"), ("0.5", "JPY", "0.5"), ("1234", "KWD", "1.234"), ("0", "USD", "0"), ("-0", "USD", "0"),
        ("12345678901234567890.0123456789", "USD", "123456789012345678.900123456789"), ("1E+2", "USD", "1"),
        ('"0.00666666666666665"', "USD", "0.000066666667"), ('"-0"', "USD", "0"), ('"1e-9999"', "USD", "0"),
        ('"0.00000000005"', "USD", "0.000000000001"),
    ],
)  # fmt: skip
def test_amounts_are_exact_however_they_are_written(cents: str, currency: str, amount: str) -> None:
    answer = read(f'{{"amount_cents": {cents}}}', currency)
    assert (plain(answer.amount), answer.currency) == (amount, currency)


@given(st.integers(-(10**30), 10**30))
def test_every_amount_that_the_ledger_holds_is_read_exactly(whole: int) -> None:
    cents = plain(Decimal(whole).scaleb(-10)) if abs(whole) < 10**27 else f"{whole // 10**10}"
    assert read({"amount_cents": cents}, negative=True).amount * 100 == Decimal(cents) or abs(whole) >= 10**27


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("<!DOCTYPE html><html>down for maintenance", "not JSON: '<!DOCTYPE html>"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[" * 700 + "]" * 700, "not JSON"),
        ('{"amount_cents": 1' + "0" * 5_000 + "}", "not JSON"),
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
        ({}, "amount_cents is missing; there is nothing"),
        ({"error": "no such tenant"}, "amount_cents is missing; there is 'error'"),
        ({"amountCents": 3}, "amount_cents is missing"),
        ('{"amount_cents": 0.30000000000000004}', "has more than 12 decimal places; send a whole number, or a decimal"),
        ({"amount_cents": None}, "amount_cents: 'None' is not a number"),
        ({"amount_cents": True}, "amount_cents: 'True' is not a number"),
        ({"amount_cents": [1]}, "is not a number"),
        ({"amount_cents": ""}, "is not a number"),
        ({"amount_cents": "1_000"}, "is not a number"),
        ({"amount_cents": "1,5"}, "is not a number"),
        ('{"amount_cents": NaN}', "is not finite"),
        ('{"amount_cents": -Infinity}', "is not finite"),
        ('{"amount_cents": 1e400}', "more than 26 digits"),
        ('{"amount_cents": "1e9999"}', "digits"),
        ({"amount_cents": -1}, "negative (-0.01 USD), and the service takes no usage back"),
        ({"amount_cents": 1, "currency": "EUR"}, "currency is 'EUR', but the account is billed in USD"),
        ({"amount_cents": 1, "currency": {"a\0": 1}}, "but the account is billed in USD"),
        ({"amount_cents": "\0"}, "is not a number"),
    ],
)
def test_what_is_no_rating_is_refused_with_its_reason(body: Any, says: str) -> None:
    assert says in refused(body)


def test_the_currency_may_be_missing_or_in_small_letters() -> None:
    assert read({"amount_cents": 1}).currency == read({"amount_cents": 1, "currency": "usd"}).currency == "USD"


def test_negative_amounts_are_taken_where_the_service_allows_them() -> None:
    assert read({"amount_cents": -150}, negative=True).amount == Decimal("-1.5")


def test_the_whole_answer_is_kept_as_it_was_written() -> None:
    text = '{"amount_cents": 10.50, "rate_card_version": 7, "discounts": [{"percent": 0.1000}], "n": 3, "x": null}'
    answer = read(text)
    assert answer.body == {
        "amount_cents": "10.50", "rate_card_version": 7, "discounts": [{"percent": "0.1000"}], "n": 3, "x": None,
    }  # fmt: skip
    assert (answer.rate_card_version, answer.latency_ms) == ("7", Decimal("1.5"))


def _storable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_storable(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(_storable, value))
    return not isinstance(value, float | Decimal) and not (isinstance(value, str) and "\0" in value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)
    )
)
def test_any_json_is_a_rating_or_refused(value: Any) -> None:
    for body in (value, {"amount_cents": value}, {"amount_cents": 1, "more": value, "rate_card_version": value}):
        try:
            answer = read(body)
        except OpenClawError:
            continue
        assert "\0" not in answer.rate_card_version
        assert _storable(answer.body)


def test_what_postgresql_cannot_hold_is_replaced() -> None:
    answer = read('{"amount_cents": 1, "a\\u0000": "b\\u0000\\ud800", "rate_card_version": "v\\u0000"}')
    assert answer.body == {"amount_cents": 1, "a\ufffd": "b\ufffd?", "rate_card_version": "v\ufffd"}
    assert answer.rate_card_version == "v\ufffd"


def test_a_request_is_exactly_the_contract() -> None:
    with scripted() as server:
        rate(server, "1234567890123456789012.000000000001")
        ask(server, lambda s: s.put_status("a/b ü", "overdue"), status_path="/v2/{tenant_id}")
    rating, status = server.requests
    assert (rating.method, rating.path, rating.headers["authorization"]) == ("POST", "/rating", f"Bearer {TOKEN}")
    assert rating.body == ('{"tenant_id":"acme","service":"calls","quantity":1234567890123456789012.000000000001}')
    assert rating.headers["content-type"] == "application/json"
    assert (status.method, status.path, status.body) == ("PUT", "/v2/a%2Fb%20%C3%BC", '{"status": "overdue"}')


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (401, False), (404, False), (408, False), (422, False), (301, False),
                              (429, True), (500, True), (503, True)],
)  # fmt: skip
def test_which_answers_may_be_asked_for_again(status: int, retryable: bool) -> None:
    answer = (status, {"echo": f"Bearer {TOKEN}", "nul": "\0"}, {"Retry-After": "7"})
    with scripted(answer) as server, pytest.raises(OpenClawError, match=f"answered {status}") as error:
        rate(server)
    assert (error.value.retryable, error.value.retry_after) == (retryable, 7)
    assert TOKEN not in str(error.value) + error.value.answer


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(days=3), usegmt=True)
    for header, least, most in ((at, 20, 30), (past, 0, 0)):
        with scripted((429, {}, {"Retry-After": header})) as server, pytest.raises(OpenClawError) as error:
            rate(server)
        assert least <= (error.value.retry_after or 0) <= most
    for header in ("soon", "-3", "1.5x"):
        with scripted((429, {}, {"Retry-After": header})) as server, pytest.raises(OpenClawError) as error:
            rate(server)
        assert error.value.retry_after is None


def test_bodies_of_100_mb_are_not_read_to_their_end() -> None:
    with scripted(flood=100_000_000) as server, pytest.raises(OpenClawError, match="larger than 1 MB") as error:
        rate(server)
    assert not error.value.retryable
    assert server.sent < 50_000_000


def test_servers_that_hang_or_drip_or_hang_up_are_left_and_may_be_asked_again() -> None:
    for script in ({"hang": True}, {"drip": True}, {"hang_up": True}):
        with scripted(**script) as server:  # type: ignore[arg-type]
            with pytest.raises(OpenClawError, match="can't be reached") as error:
                rate(server, timeout=0.5)
            assert error.value.retryable
    with pytest.raises(OpenClawError, match="can't be reached") as error:
        rate(server)  # it is gone
    assert error.value.retryable


def test_a_broken_compression_is_an_error_of_its_row() -> None:
    with scripted((200, "no gzip at all", {"Content-Encoding": "gzip"})) as server, pytest.raises(OpenClawError):
        rate(server)


def test_connections_are_used_again() -> None:
    with scripted(*[(200, {"amount_cents": 1})] * 20) as server:

        async def twenty(session: Any) -> None:
            for _ in range(20):
                await session.rate("acme", "calls", Decimal(1), "USD")

        ask(server, twenty)
    assert len({request.client for request in server.requests}) == 1


def test_the_token_never_shows() -> None:
    assert TOKEN not in repr(OpenClaw("http://x", SecretStr(TOKEN)))


@pytest.mark.parametrize(
    ("limits", "unlimited", "maximum", "minimum"),
    [
        ({"unlimited_cents": "300", "minimum_cents": "500"}, "3", None, "5"),
        ({"unlimited_cents": 900, "maximum_cents": 500}, "9", "5", None),
        ({"unlimited_cents": "500", "minimum_cents": "100", "maximum_cents": "600"}, "5", "6", "1"),
        # What does not lead to the amount is somebody else's word for something else.
        ({"unlimited_cents": "300"}, "5", None, None),
        ({"unlimited_cents": "300", "minimum_cents": "400"}, "5", None, None),
        ({"unlimited_cents": "many"}, "5", None, None),
        ({"unlimited_cents": None, "minimum_cents": "500"}, "5", None, None),
        ({"requests_per_minute": 60}, "5", None, None),
        ("none", "5", None, None),
        (None, "5", None, None),
    ],
)
def test_limits_are_taken_where_they_explain_the_amount(
    limits: Any, unlimited: str, maximum: str | None, minimum: str | None
) -> None:
    answer = read({"amount_cents": "500", "limits": limits})
    assert answer.unlimited == Decimal(unlimited)
    assert (answer.maximum, answer.minimum) == tuple(v and Decimal(v) for v in (maximum, minimum))


def test_terms_are_the_version_and_what_else_is_told() -> None:
    assert read({"amount_cents": 1}).terms == ""
    assert read({"amount_cents": 1, "rate_card_version": "v1"}).terms == "v1"
    assert read({"amount_cents": 1, "rate_card_version": "v1", "terms": "ab 1/2"}).terms == "v1 ab 1/2"
    assert read({"amount_cents": 1, "rate_card_version": "v1", "terms": {"net": 30}}).terms == "v1"
