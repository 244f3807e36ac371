"""What holds for every call: keys, routes, versions, idempotency, paging, expansion; sync and async SDK."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import stripe

from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox

LEGACY = "2025-02-24.acacia"


def test_each_test_key_is_an_account_of_its_own(sandbox: Sandbox) -> None:
    one, two = sandbox.account(), Account(sandbox, "rk_test_restricted")
    customer = one.customer()
    with pytest.raises(stripe.InvalidRequestError) as caught:
        two.v1.customers.retrieve(customer)
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")
    assert str(caught.value).endswith(f"No such customer: '{customer}'")


@pytest.mark.parametrize("key", ["sk_live_realmoney12345", "pk_test_public"])
def test_other_keys_are_refused_and_never_repeated(sandbox: Sandbox, key: str) -> None:
    with pytest.raises(stripe.AuthenticationError) as caught:
        Account(sandbox, key).customer()
    assert caught.value.http_status == 401
    assert key not in str(caught.value)
    assert sandbox.control.get("/v1/customers").status_code == 401


def test_an_unknown_route_is_a_404_of_stripes_shape(account: Account) -> None:
    for call in (account.v1.charges.list, lambda: account.client.raw_request("delete", "/v1/prices/price_1")):
        with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL") as caught:
            call()
        assert caught.value.http_status == 404


def test_an_unknown_parameter_is_refused_and_changes_nothing(account: Account) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.v1.customers.create({"name": "A", "nickname": "B"})
    assert (caught.value.code, caught.value.param) == ("parameter_unknown", "nickname")
    assert account.v1.customers.list().data == []


def test_versions_other_than_the_two_kept_are_refused(account: Account) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="Invalid Stripe API version: 2020-08-27"):
        account.v1.customers.list({}, {"stripe_version": "2020-08-27"})
    assert account.v1.customers.list({}, {"stripe_version": LEGACY}).data == []


def test_connect_is_not_kept(account: Account) -> None:
    with pytest.raises(stripe.PermissionError):
        account.v1.customers.list({}, {"stripe_account": "acct_other"})


def test_answers_carry_request_id_and_version(account: Account) -> None:
    answer = account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"}).last_response
    assert answer.request_id.startswith("req_")
    assert answer.headers["stripe-version"] == "2026-10-28.endive"
    assert answer.idempotency_key == "k"


def test_the_same_key_with_the_same_parameters_is_replayed(account: Account) -> None:
    first = account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    again = account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    assert again.id == first.id
    assert "idempotent-replayed" not in first.last_response.headers
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert len(account.v1.customers.list().data) == 1


def test_the_same_key_with_other_parameters_or_path_is_a_conflict(account: Account) -> None:
    account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    for call in (account.v1.customers.create, account.v1.products.create):
        with pytest.raises(stripe.IdempotencyError, match="can only be used with the same parameters"):
            call({"name": "B"}, {"idempotency_key": "k"})
    assert sandbox_other(account).v1.customers.create({"name": "B"}, {"idempotency_key": "k"}).name == "B"


def sandbox_other(account: Account) -> Account:
    return account.sandbox.account()


def test_a_refusal_of_the_call_itself_is_replayed_and_one_of_its_form_is_not(account: Account) -> None:
    params = {"customer": "cus_later", "return_url": "https://example.com"}
    for _ in range(2):
        with pytest.raises(stripe.InvalidRequestError, match="No such customer") as caught:
            account.v1.billing_portal.sessions.create(params, {"idempotency_key": "k"})
    assert caught.value.headers["idempotent-replayed"] == "true"
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter"):
        account.v1.customers.create({"names": "A"}, {"idempotency_key": "form"})
    assert account.v1.customers.create({"name": "A"}, {"idempotency_key": "form"}).name == "A"


def test_idempotency_keys_are_forgotten_after_a_day(month: Sandbox) -> None:
    account = month.account()
    first = account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    month.move_to(month.now() + 86_399)
    assert account.v1.customers.create({"name": "A"}, {"idempotency_key": "k"}).id == first.id
    month.move_to(month.now() + 1)
    assert account.v1.customers.create({"name": "B"}, {"idempotency_key": "k"}).id != first.id


def test_lists_are_paged_newest_first(account: Account) -> None:
    made = [account.customer() for _ in range(12)][::-1]
    assert [c.id for c in account.v1.customers.list().data] == made[:10]
    assert [c.id for c in account.v1.customers.list({"limit": 5}).auto_paging_iter()] == made
    page = account.v1.customers.list({"limit": 3, "starting_after": made[1]})
    assert ([c.id for c in page.data], page.has_more) == (made[2:5], True)
    page = account.v1.customers.list({"limit": 3, "ending_before": made[6]})
    assert ([c.id for c in page.data], page.has_more) == (made[3:6], True)
    assert not account.v1.customers.list({"limit": 5, "ending_before": made[4]}).has_more
    for params in ({"limit": 0}, {"limit": 101}, {"starting_after": "cus_no"}):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            account.v1.customers.list(params)
        assert caught.value.param == next(iter(params))


def test_expand_opens_ids_and_refuses_what_is_none(account: Account) -> None:
    price = account.price(account.meter().id)
    opened = account.v1.prices.retrieve(price.id, {"expand": ["product"]})
    assert opened.product.name == "OpenClaw Usage"
    assert account.v1.prices.list({"expand": ["data.product"]}).data[0].product.id == opened.product.id
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        account.v1.prices.retrieve(price.id, {"expand": ["nickname"]})


def test_the_async_sdk_works_too(account: Account) -> None:
    async def walk() -> list[str]:
        http = stripe.AIOHTTPClient()
        client = stripe.StripeClient(account.key, base_addresses={"api": account.sandbox.url}, http_client=http)
        try:
            made = [await client.v1.customers.create_async({"name": name}) for name in "ab"]
            found = await client.v1.customers.list_async({"limit": 1})
            ids = [customer.id async for customer in found.auto_paging_iter()]
            assert ids == [customer.id for customer in reversed(made)]
            return ids
        finally:
            await http.close_async()

    assert len(asyncio.run(walk())) == 2


def test_a_request_that_is_not_text_is_refused(account: Account) -> None:
    answer = account.sandbox.control.post("/v1/customers", content=b"name=\xff\xfe", headers=account.auth)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The request is not UTF-8."


def test_the_control_calls_refuse_what_they_do_not_know(sandbox: Sandbox) -> None:
    for path, body in (
        ("clock", {"now": "soon"}),
        ("clock", {"now": 0}),
        ("settings", {"grace": 1}),
        ("settings", {"invoice_grace_seconds": 73 * 3600}),
        ("webhooks", {"url": "ftp://example.com"}),
    ):
        answer = sandbox.control.post(f"/_sandbox/{path}", json=body)
        assert answer.status_code == 400, path
        assert answer.json()["error"]["message"]
    assert sandbox.control.get("/_sandbox/health").json()["status"] == "ok"


def test_a_key_may_come_as_the_user_name_of_basic_auth(account: Account) -> None:
    """As in Stripe's own examples: ``curl -u sk_test_…:``."""
    customer, url = account.customer(), f"{account.sandbox.url}/v1/customers"
    answer = httpx.get(url, auth=(account.key, ""), trust_env=False)
    assert [each["id"] for each in answer.json()["data"]] == [customer]
    assert httpx.get(url, auth=("sk_live_x", ""), trust_env=False).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Basic %%"}, trust_env=False).status_code == 401
