"""Who gets in: nobody without sign-in, no role beyond its own, no tenant beyond the viewer's, no forged form."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from starlette.routing import Route

from clawbill_pipeline.cli import cli
from clawbill_pipeline.correcting import planned
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline.web.finance.door import A_NAME, COOKIE, local_path
from clawbill_pipeline.web.finance.routes import finance_routes
from clawbill_pipeline.web.finance.users import User, UsersError, parse_users, write_users
from clawbill_pipeline_tests.reconciliation.month import PERIOD
from clawbill_pipeline_tests.web.finance.conftest import PASSWORD, Office, sign_in, token_of
from clawbill_pipeline_tests.web.finance.test_pages import PAGES
from clawbill_pipeline_tests.web.serving import served

DOWNLOADS = [f"/reports/{PERIOD}/{name}" for name in ("diff_report.xlsx", "diff_report.html", "breaks.csv")]
DECISIONS = ["/invoices/in_acme/decision", "/adjustments/decision", "/corrections/decision"]
#: Addresses that need no sign-in, for they show nothing of anybody.
OPEN = {"/sign-in", "/sign-out", "/static/finance.css"}


def test_every_address_is_tried_below(settings: Settings, ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    routes = {route.path for route in finance_routes(settings, ledger) if isinstance(route, Route)}
    ledger.dispose()

    def matches(path: str) -> bool:
        pattern = re.sub(r"\{[^}]+\}", "[^?]+", path)
        tried = [
            *PAGES,
            *DOWNLOADS,
            "/",
            "/periods",
            "/invoices/x/decision",
            "/adjustments/decision",
            "/corrections/decision",
        ]
        return any(re.fullmatch(pattern, address.partition("?")[0]) for address in tried)

    assert {path for path in routes - OPEN if not matches(path)} == set()


def test_nothing_without_sign_in(office: Office) -> None:
    client = office.client()
    for path in ["/", "/periods", *PAGES, *DOWNLOADS]:
        answer = client.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["Location"].startswith("/sign-in?next="), path
        assert answer.content == b""
    for path in DECISIONS:
        assert client.post(path, data={"action": "release", "why": "x"}).status_code == 401
    assert office.trail("report.downloaded") == office.trail("close.release") == []


def test_sign_in_leads_back_to_where_one_wanted_to_go(office: Office) -> None:
    client = office.client()
    assert sign_in(client, "anna", "wrong").status_code == 401
    assert sign_in(client, "nobody", PASSWORD).status_code == 401
    answer = sign_in(client, "anna", PASSWORD, f"/periods/{PERIOD}/breaks")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/periods/{PERIOD}/breaks")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert PASSWORD not in cookie
    assert client.get(f"/periods/{PERIOD}").status_code == 200
    assert [subject for subject, *_ in office.trail("web.signed_in")] == ["anna"]


@pytest.mark.parametrize("address", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", ""])
def test_sign_in_never_leads_elsewhere(address: str) -> None:
    assert local_path(address) == "/"


def test_sign_in_needs_its_own_form(office: Office) -> None:
    good = {"name": "anna", "password": PASSWORD, "next": "/"}
    assert office.client().post("/sign-in", data=good).status_code == 403
    other = token_of(office.client().get("/sign-in"))
    client = office.client()
    client.get("/sign-in")
    assert client.post("/sign-in", data=good | {"token": other}).status_code == 403
    assert client.get(f"/periods/{PERIOD}").status_code == 303


def test_guessing_passwords_is_slowed_down(office: Office) -> None:
    client = office.client()
    assert {sign_in(client, "ed", "wrong").status_code for _ in range(A_NAME)} == {401}
    answer = sign_in(client, "ed", PASSWORD)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "900")
    assert sign_in(client, "anna", PASSWORD).status_code == 303


def test_the_session_is_another_one_after_sign_in(office: Office) -> None:
    client = office.client()
    client.get("/sign-in")
    before = client.cookies[COOKIE]
    sign_in(client, "anna", PASSWORD)
    assert client.cookies[COOKIE] != before
    old = office.client()
    old.cookies.set(COOKIE, before)
    assert old.get(f"/periods/{PERIOD}").status_code == 303


def test_sign_out_ends_the_session_for_whoever_copied_it(office: Office) -> None:
    client = office.client("anna")
    copy = office.client()
    copy.cookies.set(COOKIE, client.cookies[COOKIE])
    assert copy.get(f"/periods/{PERIOD}").status_code == 200
    assert client.post("/sign-out", data={"token": "0" * 64}).status_code == 403
    assert copy.get(f"/periods/{PERIOD}").status_code == 200
    token = token_of(client.get(f"/periods/{PERIOD}"))
    assert client.post("/sign-out", data={"token": token}).status_code == 303
    assert copy.get(f"/periods/{PERIOD}").status_code == 303


def test_a_session_that_was_tampered_with(office: Office) -> None:
    client = office.client("rita")
    value = client.cookies[COOKIE]
    for forged in (value[:-2] + ("AA" if value[-2:] != "AA" else "BB"), "x", value.split(".", 1)[1], ""):
        client.cookies.clear()
        client.cookies.set(COOKIE, forged)
        assert client.get(f"/periods/{PERIOD}").status_code == 303


def test_a_new_password_or_a_lost_account_ends_sessions(office: Office, accounts: dict[str, User]) -> None:
    anna, rita = office.client("anna"), office.client("rita")
    changed = accounts["anna"].model_copy(update={"password": accounts["anna"].password + "x"})
    write_users(office.settings.users_file, {"anna": changed, "ed": accounts["ed"]})
    assert anna.get(f"/periods/{PERIOD}").status_code == 303
    assert rita.get(f"/periods/{PERIOD}").status_code == 303


def test_damaged_accounts_let_nobody_in(office: Office) -> None:
    client = office.client("anna")
    office.settings.users_file.write_text("anna: {role: king}\n", encoding="utf-8")
    answer = client.get(f"/periods/{PERIOD}")
    assert (answer.status_code, "king" in answer.text) == (503, False)
    office.settings.users_file.write_text("", encoding="utf-8")
    assert client.get(f"/periods/{PERIOD}").status_code == 303


# --- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ed", "rita"])
def test_only_finance_decides(closing: Office, name: str) -> None:
    client = closing.client(name)
    for path in (f"/invoices/{closing.draft}", "/approvals"):
        page = client.get(path)
        assert page.status_code == 200
        assert 'name="action"' not in page.text
    token = token_of(page)
    for path in (f"/invoices/{closing.draft}/decision", *DECISIONS[1:]):
        answer = client.post(path, data={"token": token, "action": "hold", "why": "because"})
        assert (answer.status_code, "Only the role finance" in answer.text) == (403, True)
    assert closing.trail("close.hold") == []


def test_who_did_what_is_not_for_read_only(office: Office) -> None:
    assert office.client("rita").get("/activity").status_code == 403
    assert "signed in" in office.client("ed").get("/activity").text


# --- tenants ---------------------------------------------------------------------------------------------------------


def test_an_account_for_one_tenant_sees_no_other(office: Office) -> None:
    client = office.client("gus")
    others = ("acme", "osaka", "cmd|")
    for path in PAGES:
        answer = client.get(path)
        if path.endswith("/reports"):
            assert answer.status_code == 403
            continue
        assert answer.status_code == 200, path
        assert not [name for name in others if name in answer.text], path
    for path in (
        f"/periods/{PERIOD}/tenant?id=acme", "/invoices/in_acme", "/invoices/in_osaka", "/lines/il_acme_tokens"
    ):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.text == client.get(path.replace("acme", "nobody").replace("osaka", "nobody")).text
    assert "None found" in client.get(f"/periods/{PERIOD}/breaks?standing=open&tenant=acme").text
    for path in DOWNLOADS:
        assert client.get(path).status_code == 403


def test_an_account_for_one_tenant_decides_on_no_other(closing: Office) -> None:
    client = closing.client("gus")
    token = token_of(client.get("/approvals"))
    said = {"token": token, "why": "because"}
    assert client.post(f"/invoices/{closing.draft}/decision", data=said | {"action": "hold"}).status_code == 404
    (row,) = closing.month.run(
        "SELECT id, subject FROM audit_trail WHERE kind = 'adjustment.proposed' AND tenant_id = 'osaka'"
    )
    about = {"subject": row.subject, "proposal": row.id, "action": "accepted"}
    assert client.post("/adjustments/decision", data=said | about).status_code == 404
    assert closing.trail("close.hold") == closing.trail("adjustment.accepted") == []


# --- downloads -------------------------------------------------------------------------------------------------------


def test_downloads_are_in_the_audit_trail(office: Office) -> None:
    client = office.client("rita")
    for path in DOWNLOADS:
        assert client.get(path).status_code == 200
    assert [(subject, said["by"]) for subject, _, said in office.trail("report.downloaded")] == [
        (path.removeprefix("/reports/"), "rita") for path in DOWNLOADS
    ]


def test_a_path_leads_to_no_other_file(office: Office) -> None:
    client = office.client("anna")
    for path in (
        "../users.yaml", "..%2fusers.yaml", "..%2f..%2fusers.yaml", "%2e%2e/%2e%2e/users.yaml", "%2fetc%2fpasswd",
        "diff_report.xlsx%00", "....//users.yaml", "..%5cusers.yaml",
    ):  # fmt: skip
        answer = client.get(f"/reports/{PERIOD}/{path}")
        assert answer.status_code == 404, path
        assert "argon2" not in answer.text
        assert "root:" not in answer.text
    assert office.trail("report.downloaded") == []


# --- forms -----------------------------------------------------------------------------------------------------------


def test_a_form_from_elsewhere_decides_nothing(closing: Office) -> None:
    client = closing.client("anna")
    path = f"/invoices/{closing.draft}/decision"
    others = token_of(closing.client("ed").get("/approvals"))
    said = {"action": "release", "why": "because"}
    for form in (said, said | {"token": ""}, said | {"token": others}, said | {"token": "é"}):
        assert client.post(path, data=form).status_code == 403
    token = token_of(client.get("/approvals"))
    assert client.post(path, json=said | {"token": token}).status_code == 415
    assert client.post(path, data=said | {"token": token, "more": "x" * 70_000}).status_code == 413
    assert client.get(path, params=said | {"token": token}).status_code == 405
    assert closing.trail("close.release") == []


def test_hold_and_release_reach_stripe_and_the_audit_trail(closing: Office) -> None:
    assert closing.account is not None
    client = closing.client("anna")
    page = client.get(f"/invoices/{closing.draft}")
    path, token = f"/invoices/{closing.draft}/decision", token_of(page)
    assert client.post(path, data={"token": token, "action": "hold", "why": " "}).status_code == 400
    for action, advances in (("hold", False), ("release", True)):
        answer = client.post(path, data={"token": token, "action": action, "why": f"{action} it"})
        assert answer.status_code == 303
        assert "Done." in client.get(answer.headers["Location"]).text
        assert closing.account.v1.invoices.retrieve(closing.draft).auto_advance is advances
        ((subject, tenant, said),) = closing.trail(f"close.{action}")
        assert (subject, tenant, said["by"], said["why"]) == (closing.draft, "acme", "anna (web)", f"{action} it")
    final = client.post("/invoices/in_acme/decision", data={"token": token, "action": "hold", "why": "x"})
    assert (final.status_code, "not a tenant" in final.text) == (409, True)


SUBJECT = "in_globex/tokens/2026-10-01T00:00:00Z"


def asked(page: httpx.Response, subject: str = SUBJECT) -> dict[str, str]:
    """The form of an adjustment, with a reason."""
    found = re.search(rf'value="{re.escape(subject)}"><input type="hidden" name="proposal" value="(\d+)"', page.text)
    assert found, page.text
    return {"token": token_of(page), "subject": subject, "proposal": found[1], "why": "checked"}


def test_an_accepted_adjustment_is_billed_once_and_can_be_taken_back(closing: Office) -> None:
    client = closing.client("anna")
    form = asked(client.get("/approvals"))
    stale = client.post("/adjustments/decision", data=form | {"proposal": "0", "action": "accepted"})
    assert stale.status_code == 404
    answer = client.post("/adjustments/decision", data=form | {"action": "accepted"})
    assert answer.headers["Location"] == "/approvals?said=accepted"
    assert closing.items == [(75, form["proposal"])]
    ((_, tenant, said),) = closing.trail("adjustment.accepted")
    assert (tenant, said["proposal"], said["by"], said["why"], said["amount"]) == (
        "globex", int(form["proposal"]), "anna (web)", "checked", "0.75"
    )  # fmt: skip
    page = client.get(answer.headers["Location"])
    assert "Adjustment accepted; Stripe has it." in page.text
    assert "0.75 USD, globex: done at Stripe" in page.text
    for action in ("accepted", "rejected"):
        assert client.post("/adjustments/decision", data=form | {"action": action}).status_code == 409
    history = client.get("/invoices/in_globex").text
    assert "adjustment accepted" in history
    assert "adjustment done at Stripe" in history

    assert client.post("/adjustments/decision", data=form | {"action": "undone"}).status_code == 303
    assert closing.items == []
    assert "globex: taken back" in client.get("/approvals").text


def test_what_stripe_refuses_is_said_where_it_is_decided(closing: Office) -> None:
    client = closing.client("anna")
    form = asked(client.get("/approvals"), "in_osaka/tokens/2026-10-01T00:00:00Z")
    answer = client.post("/adjustments/decision", data=form | {"action": "accepted"})
    assert answer.headers["Location"] == "/approvals?said=refused"
    page = client.get(answer.headers["Location"]).text
    assert "Stripe refused it: " in page
    assert "No such customer" in page


def test_a_rejected_adjustment_is_let_go(office: Office) -> None:
    client = office.client("anna")
    form = asked(client.get("/approvals"))
    undecided = client.post("/adjustments/decision", data=form | {"action": "accepted"})
    assert (undecided.status_code, "Stripe can&#39;t be told" in undecided.text) == (409, True), "no key is set here"
    assert client.post("/adjustments/decision", data=form | {"action": "rejected"}).status_code == 303
    ((_, tenant, said),) = office.trail("adjustment.rejected")
    assert (tenant, said["proposal"], said["by"], said["units"]) == (
        "globex", int(form["proposal"]), "anna (web)", "750000"
    )  # fmt: skip
    assert client.post("/adjustments/decision", data=form | {"action": "rejected"}).status_code == 409
    assert "0.75 USD, globex: let go" in client.get("/approvals").text


def test_a_correction_above_the_limit_is_approved_as_it_was_seen(office: Office) -> None:
    month = office.month
    client = office.client("anna")
    page = client.get("/approvals")
    assert "Send lost usage again: osaka tokens 2026-10-01T02:00Z" in page.text
    assert "comes to 66.6 JPY, the limit is 10" in page.text
    mark = re.search(r'name="mark" value="([0-9a-f]{64})"', page.text)
    assert mark
    form = {"token": token_of(page), "mark": mark[1], "why": "checked"}
    assert office.client("gus").get("/approvals").text.count("osaka tokens") == 0
    assert client.post("/corrections/decision", data=form | {"token": "x"}).status_code == 403
    assert client.post("/corrections/decision", data=form | {"why": ""}).status_code == 400
    assert client.post("/corrections/decision", data=form | {"mark": "0" * 64}).status_code == 409
    assert client.post("/corrections/decision", data=form).headers["Location"] == "/approvals?said=approved"
    assert client.post("/corrections/decision", data=form).status_code == 409
    ((_, tenant, said),) = office.trail("correction.approved")
    assert (tenant, said["by"], said["approval"], said["amount"], said["remedy"]) == (
        "osaka", "anna (web)", "checked", "-66.6", "resend"
    )  # fmt: skip
    assert [action.verdict for action in planned(month.ledger, month.catalog) if action.remedy == "resend"] == [
        "approved"
    ]
    month.run("UPDATE breaks SET amount = amount - 1 WHERE cause = 'lost_after_acknowledgement'")
    assert [action.verdict for action in planned(month.ledger, month.catalog) if action.remedy == "resend"] == [
        "waits"
    ], "another amount wants another look"


def test_an_account_for_one_tenant_approves_no_correction_of_another(office: Office) -> None:
    page = office.client("anna").get("/approvals").text
    mark = re.search(r'name="mark" value="([0-9a-f]{64})"', page)
    assert mark
    client = office.client("gus")
    form = {"token": token_of(client.get("/approvals")), "mark": mark[1], "why": "mine"}
    assert client.post("/corrections/decision", data=form).status_code == 409
    assert office.trail("correction.approved") == []


# --- the other two ways in -------------------------------------------------------------------------------------------


def test_without_accounts_this_machine_gets_in_and_nobody_else(laptop: Office) -> None:
    client = laptop.client()
    for path in PAGES:
        assert client.get(path).status_code == 200, path
        for headers in ({"Host": "evil.example"}, {"X-Forwarded-For": "10.0.0.1"}):
            answer = client.get(path, headers=headers)
            assert (answer.status_code, "globex" in answer.text) == (403, False)
    form = {"token": "x", "action": "accepted", "why": "x", "subject": "x", "proposal": "1"}
    assert client.post("/adjustments/decision", data=form).status_code == 403


@contextmanager
def behind_proxy(settings: Settings, addresses: str) -> Iterator[httpx.Client]:
    env = {"CLAWBILL_PROXY_USER_HEADER": "X-Forwarded-User", "CLAWBILL_PROXY_ADDRESSES": addresses}
    said = Settings.from_env(env)
    update = {name: getattr(said, name) for name in ("proxy_user_header", "proxy_addresses")}
    app = create_app(settings.model_copy(update=update), Ledger(settings.need_database()), live=False)
    with served(app) as address, httpx.Client(base_url=address, trust_env=False) as client:
        yield client


def test_the_proxys_header(office: Office, accounts: dict[str, User]) -> None:
    carla = User(role="engineer")
    write_users(office.settings.users_file, accounts | {"carla": carla})
    with behind_proxy(office.settings, "127.0.0.1") as client:
        page = client.get(f"/periods/{PERIOD}", headers={"X-Forwarded-User": "carla", "Host": "billing.example"})
        assert (page.status_code, "carla, engineer" in page.text) == (200, True)
        assert client.get(f"/periods/{PERIOD}", headers={"X-Forwarded-User": "mallory"}).status_code == 403
        twice = [("X-Forwarded-User", "carla"), ("X-Forwarded-User", "anna")]
        assert client.get(f"/periods/{PERIOD}", headers=twice).status_code == 403
        assert client.get(f"/periods/{PERIOD}").status_code == 303
        assert sign_in(client, "carla", "").status_code == 401
    with behind_proxy(office.settings, "10.0.0.0/8") as client:
        assert client.get(f"/periods/{PERIOD}", headers={"X-Forwarded-User": "carla"}).status_code == 403


def test_a_header_means_nothing_where_no_proxy_is_set_up(office: Office) -> None:
    answer = office.client().get(f"/periods/{PERIOD}", headers={"X-Forwarded-User": "anna"})
    assert answer.status_code == 303


def test_a_proxy_without_accounts_lets_nobody_in(laptop: Office) -> None:
    with behind_proxy(laptop.settings, "127.0.0.1") as client:
        assert client.get(f"/periods/{PERIOD}").status_code == 303
        assert client.get(f"/periods/{PERIOD}", headers={"X-Forwarded-User": "anna"}).status_code == 403


# --- the users file --------------------------------------------------------------------------------------------------


def test_clawbill_users(laptop: Office) -> None:
    def run(*words: str, given: str = "") -> str:
        answer = CliRunner().invoke(cli, ["users", *words, "--state", str(laptop.settings.state)], input=given)
        assert answer.exit_code == 0, answer.output
        return answer.output

    assert "this machine alone" in run("list")
    run("add", "anna", "--role", "finance", "--password-stdin", given=f"{PASSWORD}\n")
    run("add", "carla", "--role", "engineer", "--tenant", "globex", "--no-password")
    kept = laptop.settings.users_file.read_text(encoding="utf-8")
    assert "$argon2id$" in kept
    assert PASSWORD not in kept
    assert stat.S_IMODE(laptop.settings.users_file.stat().st_mode) == 0o600
    assert "globex" in run("list")
    assert laptop.client().get(f"/periods/{PERIOD}").status_code == 303
    assert laptop.client("anna").get(f"/periods/{PERIOD}").status_code == 200
    run("remove", "anna")
    assert sign_in(laptop.client(), "anna", PASSWORD).status_code == 401


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("anna: {role: king}", "anna.role"),
        ("anna: {role: finance, password: secret-in-clear}", "anna.password"),
        ("anna: {role: finance, pasword: x}", "anna.pasword"),
        ("- anna", "valid dictionary"),
        ("anna: [", "line"),
        ("'a b': {role: finance}", "no user name"),
    ],
)
def test_a_bad_users_file_is_told(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsersError, match=said) as told:
        parse_users(content, tmp_path / "users.yaml")
    assert "users.yaml" in str(told.value) or "no user name" in str(told.value)
    assert "secret-in-clear" not in str(told.value)


def test_short_passwords_are_refused(tmp_path: Path) -> None:
    words = ["users", "add", "anna", "--role", "finance", "--password-stdin", "--state", str(tmp_path)]
    answer = CliRunner().invoke(cli, words, input="short\n")
    assert isinstance(answer.exception, UsersError)
    assert list(tmp_path.iterdir()) == []


def test_the_key_of_sessions_is_private(office: Office) -> None:
    office.client("anna")
    key = office.settings.state / "web" / "session.key"
    assert (stat.S_IMODE(key.stat().st_mode), len(key.read_bytes())) == (0o600, 32)
    assert [path.name for path in key.parent.iterdir()] == ["session.key"]


def test_a_database_that_is_away_is_told_without_its_address(settings: Settings) -> None:
    away = Ledger("postgresql://clawbill:secret@127.0.0.1:1/none")
    with served(create_app(settings, away, live=False)) as address:
        answer = httpx.get(f"{address}/activity", trust_env=False)
    assert answer.status_code == 503
    assert "The database does not answer as it should; see the log." in answer.text
    assert "127.0.0.1:1" not in answer.text
    away.dispose()
