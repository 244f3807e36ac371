"""All that finance waits for, in one command: ``python -m clawbill_pipeline_tests.benchmarks.finance [--small]``.

The comparison of 5 million windows on each side, the workbook of 100,000 breaks, and the finance pages over as many.
``--small`` shows in seconds that they run; its numbers mean nothing.
"""

from __future__ import annotations

import argparse

from clawbill_pipeline_tests.benchmarks import comparison, finance_pages, workbook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    rows, breaks = (20_000, 1_000) if small else (5_000_000, 100_000)
    rounds = 1 if small else 5
    print(comparison.told(rows, comparison.measure(rows, rounds)), flush=True)  # noqa: T201
    print(f"\n{workbook.told(breaks, workbook.measure(breaks, rounds))}\n", flush=True)  # noqa: T201
    finance_pages.main(finance_pages.SMALL if small else finance_pages.FULL)


if __name__ == "__main__":
    main()
