"""The workbook of many breaks, and what xlsxwriter takes for the same cells without formats, totals and harmless text.

``python -m clawbill_pipeline_tests.benchmarks.workbook [--rows 100000]``. rustpy-xlsxwriter, the fastest there is,
can't make it: its formulas carry no values, so that totals would be empty until a spreadsheet counts them again.
"""

from __future__ import annotations

import argparse
import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import xlsxwriter

from clawbill_pipeline.reporting.report import Break, Report
from clawbill_pipeline.reporting.workbook import BREAKS, workbook
from clawbill_pipeline_tests.benchmarks.common import Took, peak_megabytes, table, taking_turns

START = datetime(2026, 10, 1, tzinfo=UTC)


def report_of(rows: int) -> Report:
    """A period with so many breaks of 2,000 tenants, no two alike."""
    breaks = tuple(
        Break(
            f"t{n % 2000}", "tokens" if n % 2 else "requests", START + timedelta(hours=n % 744), "sent_held",
            "counted_twice" if n % 3 else "lost_after_acknowledgement", "USD", Decimal(n % 977) / 8,
            Decimal(n % 977) / 64, f"sent {n}, held 0 units", START, START + timedelta(minutes=n % 60), None,
        )
        for n in range(rows)
    )  # fmt: skip
    return Report("2026-10", 1, START, (), breaks, (), (), ())


def bare(report: Report) -> bytes:
    """The cells of the breaks alone, by xlsxwriter's own calls."""
    out = io.BytesIO()
    book = xlsxwriter.Workbook(out, {"in_memory": True, "remove_timezone": True})
    sheet = book.add_worksheet()
    at_look = book.add_format({"num_format": "yyyy-mm-dd hh:mm"})
    for at, row in enumerate(report.breaks):
        for number, column in enumerate(BREAKS):
            value = getattr(row, column.name)
            if isinstance(value, Decimal):
                sheet.write_number(at, number, float(value))
            elif isinstance(value, datetime):
                sheet.write_datetime(at, number, value, at_look)
            elif value is not None:
                sheet.write_string(at, number, value)
    book.close()
    return out.getvalue()


def measure(rows: int, rounds: int) -> dict[str, Took]:
    """How long the workbook takes, and the same cells by xlsxwriter alone."""
    report = report_of(rows)
    return taking_turns({"workbook": lambda: workbook(report), "bare xlsxwriter": lambda: bare(report)}, rounds)


def told(rows: int, times: dict[str, Took]) -> str:
    shown = [(name, f"{took.wall:.2f}", f"{took.cpu:.2f}", f"{rows / took.cpu:,.0f}") for name, took in times.items()]
    return f"{rows:,} breaks, {len(BREAKS)} columns\n{table(('', 'wall, s', 'processor, s', 'rows/s'), shown)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print(told(asked.rows, measure(asked.rows, asked.rounds)))  # noqa: T201
    print(f"peak memory {peak_megabytes():,.0f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
