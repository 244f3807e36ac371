"""The rating server over real HTTP, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from clawbill_pipeline.sandbox.openclaw.openapi import DOCUMENT

TOKEN = "oc-secret-0451"
JULY, SEPTEMBER = 1_782_900_000, 1_788_300_000  # unix seconds in 2026
CATALOG = """
version: 1
start: 2026-01-01T00:00:00Z
services:
  api.requests: {unit: request}
  tokens.output: {unit: token, dimensions: [provider, model]}
  storage: {unit: GB-hour}
  compute: {unit: hour, dimensions: [band]}
  payments: {unit: USD}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: &prices
          api.requests: {model: per_unit, unit_amount: 0.0004}
          tokens.output:
            model: matrix
            cells:
              mockai/large: {model: per_unit, unit_amount: 15, per: 1000000}
            otherwise: {model: per_unit, unit_amount: 1, per: 1000000}
          storage:
            model: graduated
            tiers:
              - {up_to: 10, unit_amount: 1, flat_amount: 5}
              - {up_to: inf, unit_amount: "0.5"}
            discounts:
              - {kind: percentage, percent: 10, name: early bird}
          compute:
            model: time_of_use
            bands: [{name: peak, from: "08:00", to: "18:00", price: {model: per_unit, unit_amount: 2}}]
            otherwise: {model: per_unit, unit_amount: 1}
          payments: {model: percentage, percent: "2.9"}
      - effective_from: 2026-09-01T00:00:00Z
        prices: {<<: *prices, api.requests: {model: per_unit, unit_amount: 0.0005}}
  japan:
    currency: JPY
    versions: [{effective_from: 2026-01-01T00:00:00Z, prices: *prices}]
tenants:
  acme: {rate_card: standard}
  globex: {rate_card: standard, prices: {api.requests: {model: per_unit, unit_amount: 0.0003}}}
  nippon: {rate_card: japan}
"""


@dataclass
class Server:
    http: httpx.Client
    catalog: Path
    log: Path
    pid: int

    def rate(self, tenant_id: str, service: str, quantity: Any) -> httpx.Response:
        return self.http.post("/rating", json={"tenant_id": tenant_id, "service": service, "quantity": quantity})

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Server]:
    """The server; its clock stands in July unless an option says how it goes."""
    catalog, port_file, log = folder / "catalog.yaml", folder / "port", folder / "log"
    if not {"--now", "--workers"} & {*options}:
        options = (*options, "--now", str(JULY))
    if not catalog.exists():
        catalog.write_text(CATALOG)
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "clawbill_pipeline.sandbox.openclaw", "--port", "0", *options]
    command += ["--state", str(folder / "state"), "--catalog", str(catalog), "--port-file", str(port_file)]
    with log.open("a") as out:
        process = subprocess.Popen(command, env={**os.environ, "OPENCLAW_TOKEN": TOKEN}, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the server did not come up in a minute"
            time.sleep(0.02)
        url = f"http://127.0.0.1:{int(port_file.read_text())}"
        with httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=30
        ) as http:
            yield Server(http, catalog, log, process.pid)
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("openclaw")) as started:
        yield started


def test_the_contract(server: Server) -> None:
    answer = server.rate("acme", "storage", 12.5)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "amount_cents": "1462.5",
        "currency": "USD",
        "tenant_id": "acme",
        "service": "storage",
        "quantity": "12.5",
        "discounts": [{"name": "early bird", "amount_cents": "162.5"}],
        "lines": [
            {"kind": "usage", "amount_cents": "1000", "quantity": "10", "unit_amount": "1", "tier": 1},
            {"kind": "flat", "amount_cents": "500", "tier": 1},
            {"kind": "usage", "amount_cents": "125", "quantity": "2.5", "unit_amount": "0.5", "tier": 2},
            {"kind": "discount", "amount_cents": "-162.5", "name": "early bird"},
        ],
        "rate_card": "standard",
        "rate_card_version": "standard@2026-01-01T00:00:00Z",
        "terms": answer.json()["terms"],
    }


@pytest.mark.parametrize(
    ("quantity", "cents"),
    [
        ("3", "0.12"),
        ("0.1", "0.004"),
        ("1.10", "0.044"),
        ("12345678901234.123456789012", "493827156049.36493827156048"),
        ('"12345678901234.123456789012"', "493827156049.36493827156048"),
        ("1e-9", "0.00000000004"),
        ("1E+15", "40000000000000"),
        ('"0"', "0"),
        ("-2", "-0.08"),
    ],
)
def test_numbers_are_exact_however_they_are_written(server: Server, quantity: str, cents: str) -> None:
    body = f'{{"tenant_id":"acme","service":"api.requests","quantity":{quantity}}}'
    answer = server.http.post("/rating", content=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["amount_cents"] == cents
    assert Decimal(answer.json()["quantity"]) == Decimal(quantity.strip('"'))


def test_prices_come_from_the_tenant_s_card_and_overrides(server: Server) -> None:
    assert server.rate("globex", "api.requests", 100).json()["amount_cents"] == "3"
    yen = server.rate("nippon", "api.requests", 100).json()
    assert (yen["amount_cents"], yen["currency"]) == ("0.04", "JPY")


def test_dimensions_and_bands_are_part_of_the_service(server: Server) -> None:
    def cents(service: str) -> str:
        return server.rate("acme", service, 1000).json()["amount_cents"]

    assert cents("tokens.output:mockai/large") == "1.5"
    assert cents("tokens.output:mockai/small") == "0.1"
    assert (cents("compute:peak"), cents("compute:otherwise")) == ("200000", "100000")


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        ("", 400, "not-json", "the body is not JSON"),
        ("[1]", 400, "not-json", "not a JSON object"),
        ('{"quantity":NaN}', 400, "not-json", "NaN"),
        ("[" * 9_000, 400, "not-json", "not JSON"),
        (b"\xff\xfe", 400, "not-json", "not JSON"),
        ('{"tenant_id":"acme","service":"storage"}', 422, "fields", "quantity missing"),
        ('{"tenant_id":"a","service":"s","quantity":1,"at":1}', 422, "fields", "at not known"),
        ('{"tenant_id":"acme","service":"storage","quantity":true}', 422, "bad-quantity", "not an exact number"),
        ('{"tenant_id":"acme","service":"storage","quantity":null}', 422, "bad-quantity", "not an exact number"),
        ('{"tenant_id":"acme","service":"storage","quantity":"NaN"}', 422, "bad-quantity", "'NaN' is not a decimal"),
        ('{"tenant_id":"acme","service":"storage","quantity":" 1"}', 422, "bad-quantity", "is not a decimal number"),
        ('{"tenant_id":"acme","service":"storage","quantity":1e99999999999}', 422, "bad-quantity", "quantity: "),
        (
            '{"tenant_id":"acme","service":"storage","quantity":1e-13}',
            422,
            "bad-quantity",
            "more than 12 decimal places",
        ),
        ('{"tenant_id":"acme","service":"storage","quantity":-1}', 422, "unratable", "negative quantity -1"),
        ('{"tenant_id":"acme","service":"compute","quantity":1}', 422, "unratable", "needs the band"),
        ('{"tenant_id":"nobody","service":"storage","quantity":1}', 404, "unknown-tenant", "tenant 'nobody'"),
        ('{"tenant_id":"acme","service":"gpu","quantity":1}', 422, "unknown-service", "no price for service 'gpu'"),
        ('{"tenant_id":7,"service":"gpu","quantity":1}', 422, "bad-name", "tenant_id must be a string"),
    ],
)
def test_bad_requests_get_problem_details(server: Server, body: str | bytes, status: int, kind: str, says: str) -> None:
    answer = server.http.post("/rating", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert (problem["status"], problem["type"]) == (status, f"urn:openclaw:problem:{kind}")
    assert says in problem["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/rating", 405), ("POST", "/tenants/acme/status", 405)]
)
def test_unknown_routes_are_problems_too(server: Server, method: str, path: str, status: int) -> None:
    answer = server.http.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize("header", [None, "", "Bearer", f"Bearer {TOKEN}x", f"bearer {TOKEN}", TOKEN])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/rating"), ("PUT", "/tenants/acme/status"), ("POST", "/_sandbox/clock")]
)
def test_the_token_must_be_shown(server: Server, header: str | None, method: str, path: str) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.request(method, server.http.base_url.join(path), headers=headers, content="{}", trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert TOKEN not in answer.text


def test_bodies_are_limited_also_when_they_do_not_say_their_size(server: Server) -> None:
    assert server.http.post("/rating", content=b" " * 20_000).status_code == 413
    assert server.http.post("/rating", content=iter([b" " * 10_000] * 2)).status_code == 413
    assert server.rate("acme", "storage", 1).status_code == 200


def test_openapi_describes_what_is_answered(server: Server) -> None:
    document = httpx.get(server.http.base_url.join("/openapi.json"), trust_env=False).json()
    assert document == DOCUMENT
    schemas = document["components"]["schemas"]

    def fits(answer: dict[str, Any], schema: str) -> bool:
        return set(schemas[schema]["required"]) <= answer.keys() <= schemas[schema]["properties"].keys()

    rating = server.rate("acme", "storage", 12).json()
    assert fits(rating, "Rating")
    assert all(fits(line, "Line") for line in rating["lines"])
    assert fits(server.rate("acme", "tokens.output:mockai/large", 1).json()["lines"][0], "Line")
    assert fits(server.http.get("/tenants/acme/status").json(), "Status")
    assert fits(server.http.get("/healthz").json(), "Health")
    assert fits(server.rate("nobody", "storage", 1).json(), "Problem")


def test_status_is_kept_over_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.http.get("/tenants/acme/status").json()["status"] is None
        first = server.http.put("/tenants/acme/status", json={"status": "overdue"})
        assert first.json() == {"tenant_id": "acme", "status": "overdue", "reported_at": "2026-07-01T10:00:00+00:00"}
    with running(tmp_path, "--now", str(SEPTEMBER)) as server:
        assert server.http.get("/tenants/acme/status").json() == first.json()
        assert server.http.put("/tenants/acme/status", json={"status": "overdue"}).json() == first.json()
        assert server.http.put("/tenants/acme/status", json={"status": "paid"}).json()["status"] == "paid"
        assert server.http.get("/tenants/globex/status").json()["status"] is None


@pytest.mark.parametrize(
    ("tenant", "body", "status"),
    [
        ("nobody", {"status": "paid"}, 404),
        ("acme", {}, 422),
        ("acme", {"status": ""}, 422),
        ("acme", {"status": 1}, 422),
        ("acme", {"status": "paid", "note": "x"}, 422),
    ],
)
def test_bad_statuses_are_refused(server: Server, tenant: str, body: dict[str, Any], status: int) -> None:
    assert server.http.put(f"/tenants/{tenant}/status", json=body).status_code == status


def test_the_clock_chooses_the_version(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.rate("acme", "api.requests", 100).json()["amount_cents"] == "4"
        assert server.http.post("/_sandbox/clock", json={"now": SEPTEMBER}).json()["now"] == SEPTEMBER
        answer = server.rate("acme", "api.requests", 100).json()
        assert (answer["amount_cents"], answer["rate_card_version"]) == ("5", "standard@2026-09-01T00:00:00Z")
        assert server.http.post("/_sandbox/clock", json={"now": "soon"}).status_code == 422


def workers_of(server: Server) -> set[int]:
    """The processes that serve, by their process id."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return {int(pid) for pid in children if b"spawn_main" in _command_of(pid)}


def _command_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:  # it has ended since
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_workers_share_the_port_and_the_statuses(tmp_path: Path) -> None:
    with running(tmp_path, "--workers", "2") as server:
        assert server.http.get("/_sandbox/clock").status_code == 404
        first = workers_of(server)
        assert len(first) == 2
        for number in range(20):  # a connection each, so that both answer
            with httpx.Client(base_url=server.http.base_url, headers=server.http.headers, trust_env=False) as http:
                status = "paid" if number % 2 else "overdue"
                assert http.put("/tenants/acme/status", json={"status": status}).json()["status"] == status
            assert server.http.get("/tenants/acme/status").json()["status"] == status
        # One that ends is replaced, and meanwhile the other serves.
        os.kill(min(first), signal.SIGKILL)
        deadline = time.monotonic() + 180
        while len(workers_of(server) - first) < 1:
            assert time.monotonic() < deadline
            with (
                httpx.Client(base_url=server.http.base_url, trust_env=False, timeout=30) as http,
                suppress(httpx.TransportError),  # a call that the killed one had already taken
            ):
                http.get("/healthz")
        assert server.rate("acme", "storage", 1).status_code == 200
        assert server.http.get("/tenants/acme/status").json()["status"] == "paid"
        # All are replaced one after the other, and no call is refused.
        before = workers_of(server)
        os.kill(server.pid, signal.SIGHUP)
        deadline = time.monotonic() + 180
        while len(workers_of(server) - before) < 2 or workers_of(server) & before:
            assert time.monotonic() < deadline
            with httpx.Client(base_url=server.http.base_url, trust_env=False, timeout=30) as http:
                assert http.get("/healthz").status_code == 200
        left = workers_of(server)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert TOKEN not in server.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a process that its parent is gone")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    left: set[int] = set()

    def run() -> None:
        with running(tmp_path, "--workers", "2") as server:
            left.update(workers_of(server))
            os.kill(server.pid, signal.SIGKILL)

    with pytest.raises(AssertionError):  # its exit code is not 0
        run()
    assert len(left) == 2
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_changed_catalogue_is_read_and_a_broken_one_is_not(tmp_path: Path) -> None:
    with running(tmp_path, "--access-log") as server:

        def cents() -> str:
            return server.rate("acme", "api.requests", 100).json()["amount_cents"]

        server.catalog.write_text(CATALOG.replace("unit_amount: 0.0004", "unit_amount: 0.0008"))
        assert cents() == "8"
        server.catalog.write_text(CATALOG.replace("up_to: inf", "up_to: 20"))
        assert cents() == "8"
        assert "no price for quantities above 20" in server.http.get("/healthz").json()["catalog_fault"]
        server.catalog.unlink()
        assert cents() == "8"
        server.catalog.write_text(CATALOG)
        assert cents() == "4"
        assert server.http.get("/healthz").json()["catalog_fault"] is None
        server.http.post("/rating", content="{", headers={"Authorization": "Bearer guess"})

    lines = server.lines()
    refused = [line for line in lines if line["event"] == "catalogue refused, the old one stays"]
    assert ["level" in line and "at" in line for line in lines] == [True] * len(lines)
    assert len(refused) == 2
    assert [line["status"] for line in lines if line["event"] == "request" and line["path"] == "/rating"] == [
        200
    ] * 4 + [401]
    assert TOKEN not in server.log.read_text()
    assert "guess" not in server.log.read_text()


@pytest.mark.parametrize(
    ("catalog", "token", "says"),
    [(CATALOG, "", "set OPENCLAW_TOKEN"), (CATALOG.replace("up_to: inf", "up_to: 20"), TOKEN, "above 20")],
)
def test_what_it_does_not_start_without(tmp_path: Path, catalog: str, token: str, says: str) -> None:
    (tmp_path / "catalog.yaml").write_text(catalog)
    command = [
        sys.executable,
        "-m",
        "clawbill_pipeline.sandbox.openclaw",
        "--port",
        "0",
        "--state",
        str(tmp_path / "state"),
    ]
    done = subprocess.run(
        [*command, "--catalog", str(tmp_path / "catalog.yaml")],
        env={**os.environ, "OPENCLAW_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert says in done.stderr
