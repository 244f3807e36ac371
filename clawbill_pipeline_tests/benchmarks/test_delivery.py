"""The delivery benchmark runs, and what it measures comes out right; how fast it is nobody asserts."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from clawbill_pipeline_tests.benchmarks.delivery import main


@pytest.mark.slow
def test_every_line_of_the_table_is_measured() -> None:
    small = ["--records", "1000", "--rows", "1000", "--rounds", "1", "--seconds", "0.2"]
    result = CliRunner().invoke(main, small, catch_exceptions=False)
    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert [line.split("  ")[0] for line in lines] == [
        "bare SDK on AIOHTTPClient, v1",
        "outbox, v1 (1 record a call)",
        "outbox, v2 (100)",
        "planning 1,000 rated rows",
        "planning them again, unchanged",
        "planning an hour of 10 customers",
        "limiter at 1,000 calls/s",
    ]
