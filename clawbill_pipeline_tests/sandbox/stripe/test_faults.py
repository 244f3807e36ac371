"""Faults on demand: what the SDK sees, and whether the effect is there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import Account

PATH = "/v1/customers"


def fault(account: Account, **params: Any) -> None:
    answer = account.sandbox.control.post("/_sandbox/faults", json={"path": PATH, **params}, headers=account.auth)
    assert answer.status_code == 200, answer.text


def names(account: Account) -> list[str]:
    return [customer.name for customer in account.v1.customers.list().data]


@pytest.mark.parametrize("kind", ["drop", "timeout"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_connection_before_and_after_the_effect(account: Account, kind: str, when: str) -> None:
    fault(account, kind=kind, when=when, method="POST", seconds=0.05)
    with pytest.raises(stripe.APIConnectionError):
        account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    assert names(account) == ([] if when == "before" else ["A"])
    again = account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    assert again.last_response.headers.get("idempotent-replayed") == ("true" if when == "after" else None)
    assert names(account) == ["A"]


def test_a_client_that_gives_up_sees_a_timeout(account: Account) -> None:
    fault(account, kind="timeout", when="after", method="POST", seconds=30)

    async def give_up() -> None:
        http = stripe.AIOHTTPClient(timeout=0.2)
        bases: Any = {"api": account.sandbox.url}
        client = stripe.StripeClient(account.key, base_addresses=bases, http_client=http)
        try:
            with pytest.raises(stripe.APIConnectionError):
                await client.v1.customers.create_async({"name": "A"})
        finally:
            await http.close_async()

    began = time.monotonic()
    asyncio.run(give_up())
    assert time.monotonic() - began < 20
    assert names(account) == ["A"]


@pytest.mark.parametrize(
    ("status", "error"),
    [(409, stripe.APIError), (429, stripe.RateLimitError), (500, stripe.APIError), (503, stripe.APIError)],
)
def test_errors_before_the_effect_are_not_remembered(account: Account, status: int, error: type[Exception]) -> None:
    fault(account, kind="error", status=status, retry_after=7, method="POST")
    with pytest.raises(error) as caught:
        account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    assert isinstance(caught.value, stripe.StripeError)
    assert (caught.value.http_status, caught.value.headers["retry-after"]) == (status, "7")
    assert names(account) == []
    assert account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"}).name == "A"


def test_an_error_after_the_effect_hides_it(account: Account) -> None:
    fault(account, kind="error", when="after", method="POST")
    with pytest.raises(stripe.APIError):
        account.v1.customers.create({"name": "A"})
    assert names(account) == ["A"]


def test_slow_answers_are_right(account: Account) -> None:
    fault(account, kind="slow", seconds=0.05)
    assert account.v1.customers.create({"name": "A"}).name == "A"


def test_which_calls_are_struck(account: Account) -> None:
    fault(account, kind="error", skip=1, count=2, method="POST")
    seen = []
    for name in "abcd":
        try:
            account.v1.customers.create({"name": name})
            seen.append("ok")
        except stripe.APIError:
            seen.append("error")
    assert seen == ["ok", "error", "error", "ok"]
    assert account.v1.products.create({"name": "P"}).name == "P"
    other = account.sandbox.account()
    fault(account, kind="error", count=None)
    assert other.customer()
    with pytest.raises(stripe.APIError):
        account.customer()
    listed = account.sandbox.control.get("/_sandbox/faults", headers=account.auth).json()["faults"]
    assert [entry["struck"] for entry in listed] == [2, 1]
    cleared = account.sandbox.control.delete("/_sandbox/faults", headers=account.auth)
    assert cleared.json() == {"cleared": 2}
    account.customer()


def test_a_share_of_calls_is_struck_the_same_for_a_seed(account: Account) -> None:
    def outcomes(seed: int) -> list[bool]:
        fault(account, kind="error", count=None, probability=0.5, seed=seed, method="GET")
        seen = []
        for _ in range(12):
            try:
                account.v1.customers.list()
                seen.append(True)
            except stripe.APIError:
                seen.append(False)
        account.sandbox.control.delete("/_sandbox/faults", headers=account.auth)
        return seen

    assert outcomes(1) == outcomes(1)
    assert outcomes(1) != outcomes(2)
    assert len(set(outcomes(1))) == 2


def test_a_fault_that_is_not_one_is_refused(account: Account) -> None:
    for body in ({"kind": "flood"}, {"kind": "drop", "often": 2}, {}):
        answer = account.sandbox.control.post("/_sandbox/faults", json=body)
        assert answer.status_code == 400
