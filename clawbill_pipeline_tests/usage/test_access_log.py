"""Access logs: every request once, whatever rotation does to its file."""

import gzip
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clawbill_pipeline.catalog import CatalogError
from clawbill_pipeline.usage.events import Fault
from clawbill_pipeline.usage.inputs import Line
from clawbill_pipeline.usage.sources import inputs
from clawbill_pipeline_tests.usage.conftest import catalogue

DATA = Path(__file__).parents[3] / "shared" / "data" / "access_logs"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"real access logs are not at {DATA}")

SOURCE = {
    "name": "web",
    "kind": "access_log",
    "path": "logs",
    "requests": "api.calls",
    "bytes": "credits",
    "tenants": [{"by": "path", "pattern": "^/t/([a-z]+)/"}, {"by": "user", "pattern": "^root$", "tenant": "acme"}],
}


def request(minute=0, path="/t/acme/x", size="512", user="-", host="", end='"-" "curl/8"'):
    at = f"22/Nov/2026:12:{minute:02}:00 +0200"
    return f'{host}10.0.0.1 - {user} [{at}] "GET {path} HTTP/1.1" 200 {size} {end}\n'.encode()


@pytest.fixture
def web(place):
    place.sources = (SOURCE,)
    return place


def totals(place) -> Counter:
    first = {(event["tenant_id"], event["event_id"]): event for event in place.events()}
    total = Counter()
    for event in first.values():
        total[event["tenant_id"], event["service"]] += event["quantity"]
    return total


def test_requests_and_bytes_by_tenant(web):
    lines = (
        request()
        + request()
        + request(path="/t/globex/y", size="-")
        + request(path="/", user="root", host="a.example:443 ")
    )
    (web.logs / "access.log").write_bytes(lines + request(path="/nobody") + b"nonsense\n" + request(minute=99))
    landed = web.land()
    assert totals(web) == {
        ("acme", "api.calls"): 3,
        ("acme", "credits"): 1536,
        ("globex", "api.calls"): 1,
    }
    assert (landed.lines, landed.event_lines) == (7, 4)
    assert [row["reason"] for row in web.quarantine()] == ["no_tenant", "not_an_access_log", "time_unreadable"]
    assert {event["event_time"] for event in web.events()} == {datetime(2026, 11, 22, 10, tzinfo=UTC)}


def test_rotation_bills_nothing_twice_and_loses_nothing(web):
    log = web.logs / "access.log"
    log.write_bytes(request(1) + request(1))
    web.land()
    with log.open("ab") as file:
        file.write(request(2))
    log.rename(web.logs / "access.log.1")
    log.write_bytes(request(3))
    web.land()
    (web.logs / "access.log.2.gz").write_bytes(gzip.compress((web.logs / "access.log.1").read_bytes()))
    log.rename(web.logs / "access.log.1")
    log.write_bytes(request(4) + request(5))
    landed = web.land()
    assert landed.problems == ()
    assert totals(web)["acme", "api.calls"] == 6
    assert web.land().landings == 0


def test_other_forms_of_the_line(web):
    source = catalogue(SOURCE).sources[0]
    (web.logs / "access.log").write_bytes(request())
    (made,) = inputs(source, web.folder)

    def read(raw: bytes):
        (record,) = made.format.records(Line(1, 0, raw.rstrip(b"\n")))
        return record["host"], record["address"], record["user"], record["path"], record["status"], record["bytes"]

    assert read(request(end="")[:-2]) == ("", "10.0.0.1", "-", "/t/acme/x", "200", "512")
    assert read(request(host="a.example ", user="a b", end='"r \\" x" "u" extra=1'))[:3] == (
        "a.example",
        "10.0.0.1",
        "a b",
    )
    assert read(b'::1 - - [22/Nov/2026:12:00:00 +0000] "\\x16\\x03" 400 0 "-" "-"')[3:] == ("-", "400", "0")
    with pytest.raises(Fault):
        read(b'{"json": true}')


@real
def test_a_real_log_is_read_to_its_last_line(place):
    place.sources = (
        {
            **SOURCE,
            "path": str(DATA),
            "pattern": "*.log",
            "tenants": [{"by": "address", "pattern": ".", "tenant": "site"}],
        },
    )
    landed = place.land(finished=True)
    # The log is of 2015: each line is understood, and set aside for its time alone.
    assert landed.lines == 10_000
    assert [row["reason"] for row in place.rows("SELECT DISTINCT reason FROM quarantine")] == ["before_start"]


@pytest.mark.parametrize(
    "rule", [{"by": "path", "pattern": "("}, {"by": "path", "pattern": "x"}, {"by": "mood", "pattern": "."}]
)
def test_a_rule_that_tells_no_tenant_is_refused(rule):
    with pytest.raises(CatalogError):
        catalogue({**SOURCE, "tenants": [rule]})
