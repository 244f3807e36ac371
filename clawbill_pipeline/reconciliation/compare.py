"""Reconciles a billing period: reads the books, has them compared, writes what was found. Start reading here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog, Period
from clawbill_pipeline.catalog.periods import period_of_month
from clawbill_pipeline.duck import duck
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.archive import refuse_archived
from clawbill_pipeline.ledger.causes import NO_FAULT
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.sharing import Sharing, read_sharing
from clawbill_pipeline.ledger.waterfall import (
    NO_SERVICE,
    Billed,
    Scope,
    Step,
    billed_services,
    scope_of,
    unit_scale,
    waterfall,
)
from clawbill_pipeline.money import plain, total
from clawbill_pipeline.reconciliation.books import read_books
from clawbill_pipeline.reconciliation.decided import read_decisions, with_decisions
from clawbill_pipeline.reconciliation.hourly import (
    Difference,
    Total,
    compare_hours,
    read_apart,
    read_sent_hours,
    read_totals,
)
from clawbill_pipeline.reconciliation.record import Changes, merged, write_breaks, write_standing
from clawbill_pipeline.reconciliation.totals import Account, Break, compare_account, priced
from clawbill_pipeline.results import Check

ZERO = Decimal(0)
#: Steps at which Stripe has but the sum of tenants that share a customer.
SUMMED = ("sent_held", "held_invoiced", "invoiced_asked", "invoiced_paid")
_Key = tuple[str, str]


@dataclass(frozen=True)
class Reconciled:
    """What reconciliation came to. ``breaks`` are open faults, ``waiting`` what settles by itself, ``explained`` the
    differences that are as they should be (a discount, credit)."""

    period: str
    reconciliation_id: int
    appended: bool
    waterfall: tuple[Step, ...]
    breaks: tuple[Break, ...]
    waiting: tuple[Break, ...]
    explained: tuple[Break, ...]
    changes: Changes
    checks: tuple[Check, ...]


def reconcile(ledger: Ledger, catalog: Catalog, lake: Lake, *, period: str, now: datetime, run_id: str) -> Reconciled:
    """Compares the billing periods that start in ``period`` (``YYYY-MM``) at every step, and records the breaks.

    The same data at the same ``now`` changes no row. Two workers on the same period wait for one another. Raises
    LedgerError where the database is away.
    """
    with ledger.transaction() as connection:
        lock(connection, "reconciliation", period)
        every, damaged = _compare(connection, catalog, lake, period, now)
        found = merged(every)
        changes = write_breaks(connection, period, found, now)
        steps = waterfall(connection, catalog, period)
        reconciliation_id, appended = write_standing(
            connection, period, steps, found, catalog.unit_costs(), now, run_id
        )
    faults = tuple(b for b in found if b.cause not in NO_FAULT)
    waiting = tuple(b for b in found if b.cause == "pending")
    explained = tuple(b for b in found if b.cause in NO_FAULT and b.cause != "pending")
    return Reconciled(
        period, reconciliation_id, appended, tuple(steps), faults, waiting, explained, changes, _checks(faults, damaged)
    )


def _checks(faults: tuple[Break, ...], damaged: int) -> tuple[Check, ...]:
    unexplained = [b for b in faults if b.cause == "unexplained"]
    causes = sorted({b.cause for b in faults})
    return (
        Check(
            "no_unexplained_break",
            not unexplained,
            "Every difference between two steps has a cause that a rule found.",
            {"unexplained": len(unexplained), "amount": total(b.amount.copy_abs() for b in unexplained)},
        ),
        Check(
            "no_open_break",
            not faults and not damaged,
            "Nothing differs between raw usage, metered, rated, sent, held, invoiced and paid.",
            {"breaks": len(faults), "causes": ", ".join(causes), "damaged_lake_files": damaged},
        ),
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def _compare(
    connection: Connection, catalog: Catalog, lake: Lake, period: str, now: datetime
) -> tuple[list[Break], int]:
    """Every break of the period, and how many lake files are damaged."""
    scope = scope_of(catalog, period)
    refuse_archived(connection, *scope.hours)
    billed = billed_services(connection, scope)
    invoiced: dict[_Key, dict[str, Billed]] = {}
    for (tenant_id, service, currency), lines in billed.items():
        invoiced.setdefault((tenant_id, service), {})[currency] = lines
    sharing = read_sharing(connection)
    finals = _finals(invoiced)
    finals |= {(other, key[1]): at for key, at in finals.items() for other in sharing.others(key[0])}
    held = _read_held(connection, scope)
    decisions = read_decisions(connection, catalog, period)
    with duck(memory_limit=lake.memory_limit) as db:
        damaged = read_books(db, connection, catalog, lake, scope, finals, sharing)
        differences: dict[_Key, list[Difference]] = {}
        for difference in compare_hours(db, catalog.calendar, now):
            differences.setdefault((difference.tenant_id, difference.service), []).append(difference)
        totals = read_totals(db)
        keys = {*totals, *held, *invoiced, *differences}
        keys |= {(sharing.payer(tenant_id), service) for tenant_id, service in keys}
        own = {
            key: _account(catalog, period, key, totals.get(key), held.get(key), invoiced.get(key, {}))
            for key in sorted(keys)
        }
        # Tenants that share a customer are on one bill, which is compared with their sum.
        groups = {key: _group(key, own, sharing) for key in own if key[0] not in sharing.payers}
        accounts = {key: own[key].sharing([own[other] for other in group[1:]]) for key, group in groups.items()}
        apart = read_apart(db)
        wanted = [key for key, account in accounts.items() if key in apart or _needs_hours(account)]
        hours = read_sent_hours(db, wanted)
    breaks = list(_read_quarantined(connection, scope))
    for key, account in accounts.items():
        group = groups[key]
        hourly = [priced(difference, own[each]) for each in group for difference in differences.get(each, ())]
        whole = account.with_hours(hours.get(key, ()))
        found = compare_account(whole, hourly, now=now, settle_lag=catalog.calendar.settle_lag)
        found = with_decisions(whole, found, [each for part in group for each in decisions.get(part, ())])
        breaks += found if len(group) == 1 else _told_apart(found, key[0], [own[each] for each in group])
    return breaks, damaged


def _group(key: _Key, own: Mapping[_Key, Account], sharing: Sharing) -> list[_Key]:
    """``key`` and those whose usage is on its bill."""
    return [key, *((other, key[1]) for other in sharing.others(key[0]) if (other, key[1]) in own)]


def _told_apart(breaks: Iterable[Break], payer_id: str, parts: Sequence[Account]) -> list[Break]:
    """``breaks`` of a bill that several share, where what differs is their sum, with each one's part of it."""
    shares = ", ".join(f"{part.tenant_id} {plain(part.total.rated_amount)} {part.currency}" for part in parts)
    return [
        replace(b, detail=f"{b.detail}; on one bill: {shares}") if b.tenant_id == payer_id and b.step in SUMMED else b
        for b in breaks
    ]


def _account(
    catalog: Catalog,
    period: str,
    key: _Key,
    booked: Total | None,
    held: Decimal | None,
    invoiced: Mapping[str, Billed],
) -> Account:
    """``invoiced`` are the lines by currency."""
    tenant_id, service = key
    known = catalog.services.get(service)
    currency = catalog.currency(tenant_id) if tenant_id in catalog.tenants else next(iter(sorted(invoiced)), None)
    end = _period(catalog, tenant_id, period).end
    return Account(
        tenant_id=tenant_id,
        service=service,
        currency=currency,
        by_amount=known is None or known.bill_by == "amount",
        scale=unit_scale(catalog, service),
        total=booked or Total(tenant_id, service, ZERO, ZERO, ZERO, ZERO, ZERO, None, ZERO, None),
        held=held,
        billed=invoiced.get(currency) if currency else None,
        foreign=tuple(lines for other, lines in sorted(invoiced.items()) if other != currency),
        closed_at=end + catalog.calendar.stripe_grace + catalog.calendar.settle_lag,
    )


def _period(catalog: Catalog, tenant_id: str, key: str) -> Period:
    tenant = catalog.tenants.get(tenant_id)
    return tenant.period(key) if tenant else period_of_month(key, 1, ZoneInfo("UTC"))


def _needs_hours(account: Account) -> bool:
    sent = account.total.sent or ZERO
    differs = account.held is not None and account.held != sent
    return differs or (account.billed is not None and sent != account.total.sent_by_final)


def _finals(invoiced: Mapping[_Key, Mapping[str, Billed]]) -> dict[_Key, datetime]:
    """When the invoice of a tenant's service became final; absent while any of its lines is on a draft."""
    finals: dict[_Key, datetime] = {}
    for key, by_currency in invoiced.items():
        instants = [line.finalized_at for billed in by_currency.values() for line in billed.lines]
        known = [instant for instant in instants if instant is not None]
        if len(known) == len(instants):
            finals[key] = max(known)
    return finals


def _read_held(connection: Connection, scope: Scope) -> dict[_Key, Decimal]:
    query = (
        f"WITH {scope.PERIODS} SELECT DISTINCT ON (tenant_id, service) tenant_id, service, units"
        f" {scope.rows('usage_summaries', 'period_start', hourly=False)} AND hour IS NULL"
        " ORDER BY tenant_id, service, id DESC"
    )
    return {(row.tenant_id, row.service): row.units for row in connection.execute(text(query), scope.parameters)}


# A line in quarantine has no time that can be trusted: it belongs where the newest hour of its landing is, or where it
# was set aside.
_QUARANTINED = """
, q AS (
  SELECT q.tenant_id, q.reason, q.field, q.uri, q.place,
    coalesce((SELECT max(hour) FROM landed_hours h WHERE h.landing_id = q.landing_id), q.quarantined_at) AS at
  FROM quarantine q WHERE q.tenant_id IS NOT NULL)
SELECT tenant_id, count(*) AS lines, min(uri || ' ' || place) AS first,
  string_agg(DISTINCT reason || ' (' || field || ')', ', ') AS reasons
"""


def _read_quarantined(connection: Connection, scope: Scope) -> Iterator[Break]:
    query = f"WITH {scope.PERIODS} {_QUARANTINED} {scope.rows('q', 'at', hourly=False)} GROUP BY tenant_id"
    for row in connection.execute(text(query), scope.parameters):
        detail = f"{row.lines} line{'s' * (row.lines != 1)}: {row.reasons}; the first is {row.first}"
        yield Break(row.tenant_id, NO_SERVICE, None, "source_landed", "quarantined", None, ZERO, ZERO, detail)
