"""Report downloads: only registered files, only as they were made, only to this machine."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert

from clawbill_pipeline.ledger.tables import reconciliations, reports
from clawbill_pipeline_tests.web.conftest import Web

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def register(web: Web, name: str, content: bytes, period: str = "2026-10") -> None:
    path = web.settings.reports_root / period / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with web.ledger.transaction() as connection:
        reconciliation = connection.scalar(
            insert(reconciliations)
            .values(period=period, sha256=name, waterfall=[], open_breaks=0, as_of=NOW, run_id="r")
            .returning(reconciliations.c.id)
        )
        connection.execute(
            insert(reports).values(
                period=period,
                name=name,
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                reconciliation_id=reconciliation,
                made_at=NOW,
            )
        )


def test_a_registered_report_is_downloaded(web: Web) -> None:
    register(web, "diff.csv", b"tenant,break\r\n")
    answer = web.http.get("/reports/2026-10/diff.csv")
    assert (answer.status_code, answer.content) == (200, b"tenant,break\r\n")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="diff.csv"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_html_report_is_shown_without_scripts(web: Web) -> None:
    register(web, "diff.html", b"<p>fine</p>")
    answer = web.http.get("/reports/2026-10/diff.html")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


@pytest.mark.parametrize(
    "path",
    [
        "2026-10/secret.csv",
        "2026-11/diff.csv",
        "2026-10/../secret.txt",
        "2026-10/..%2fsecret.txt",
        "..%2f/diff.csv",
        "2026-10/diff.csv%00",
        "2026-10/",
    ],
)
def test_what_is_not_registered_is_not_served(web: Web, path: str) -> None:
    register(web, "diff.csv", b"x")
    (web.settings.reports_root / "2026-10" / "secret.csv").write_bytes(b"secret")
    (web.settings.reports_root / "secret.txt").write_bytes(b"secret")
    answer = web.http.get(f"/reports/{path}")
    assert answer.status_code == 404
    assert b"secret" not in answer.content


def test_a_registered_name_outside_the_reports_folder_is_not_served(web: Web) -> None:
    register(web, "../../outside.txt", b"x")
    assert web.http.get("/reports/2026-10/..%2f..%2foutside.txt").status_code == 404


def test_a_file_that_changed_or_went_is_not_served(web: Web) -> None:
    register(web, "diff.csv", b"as made")
    path = web.settings.reports_root / "2026-10" / "diff.csv"
    path.write_bytes(b"changed")
    assert web.http.get("/reports/2026-10/diff.csv").status_code == 404
    path.unlink()
    assert web.http.get("/reports/2026-10/diff.csv").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "[::1"}, {"X-Forwarded-For": "10.0.0.1"}, {"Forwarded": "for=10.0.0.1"}],
)
def test_only_this_machine_is_served(web: Web, headers: dict[str, str]) -> None:
    register(web, "diff.csv", b"x")
    assert web.http.get("/reports/2026-10/diff.csv", headers=headers).status_code == 403
    assert web.http.get("/reports/2026-10/diff.csv", headers={"Host": "localhost:1"}).status_code == 200
