"""The benchmark of usage over HTTP, small: it runs, and every event is there. No time is judged."""

from __future__ import annotations

from pathlib import Path

from clawbill_pipeline_tests.benchmarks import ingest
from clawbill_pipeline_tests.conftest import AnyServer


def test_both_servers_store_all_that_was_sent(ledger_url: str, postgres_server: AnyServer, tmp_path: Path) -> None:
    dsn = postgres_server.dsn(ledger_url.partition("?")[0].rpartition("/")[2])
    requests = {1: 20, 100: 4}
    found = ingest.measure(ledger_url, dsn, tmp_path, requests=requests, rounds=1, concurrency=2)
    lines = ingest.shown(found).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["bare", "1"], ["ours", "1"], ["bare", "100"], ["ours", "100"]]
