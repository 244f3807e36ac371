"""Compares what shows over a whole period: Stripe's totals, invoice lines, payments. Turns differences into breaks.

Pure functions over plain data. Hour by hour comparison of our own books is in ``hourly``, what people decided on the
differences in ``decided``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal, localcontext

from clawbill_pipeline.ledger.causes import BILLING_STEPS
from clawbill_pipeline.ledger.waterfall import Billed, shared_out
from clawbill_pipeline.money import EXACT, MICRO, SCALE, invoice_amount, plain, rounded, total
from clawbill_pipeline.reconciliation.hourly import Difference, SentHour, Total

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Break:
    """A difference with its place, cause and worth. ``hour`` is None where it is known only for the period.

    ``quantity`` in the service's unit, ``amount`` in ``currency``'s major unit; both are the later step less the
    earlier one, so what is lost is negative.
    """

    tenant_id: str
    service: str
    hour: datetime | None
    step: str
    cause: str
    currency: str | None
    quantity: Decimal
    amount: Decimal
    detail: str


@dataclass(frozen=True, slots=True)
class Account:
    """All that is known of one tenant's service in one period, but for its single hours.

    ``held`` are Stripe's units, None if never read; ``billed`` its invoice lines in the tenant's currency, ``foreign``
    those in another one. ``closed_at`` is when the period's invoice should be final.
    """

    tenant_id: str
    service: str
    currency: str | None
    by_amount: bool
    scale: Decimal
    total: Total
    held: Decimal | None = None
    billed: Billed | None = None
    foreign: tuple[Billed, ...] = ()
    closed_at: datetime | None = None
    hours: Sequence[SentHour] = field(default=())

    def sharing(self, others: Sequence[Account]) -> Account:
        """The account of a bill that is for ``others`` too: of what is booked their sum."""
        if not others:
            return self
        every = [self.total, *(other.total for other in others)]
        sent = [each.sent for each in every if each.sent is not None]
        settled = [each.settled_at for each in every if each.settled_at is not None]
        return replace(
            self,
            total=Total(
                self.tenant_id,
                self.service,
                rated_quantity=total(each.rated_quantity for each in every),
                rated_amount=total(each.rated_amount for each in every),
                rated_units=total(each.rated_units for each in every),
                exact_units=total(each.exact_units for each in every),
                units=total(each.units for each in every),
                sent=total(sent) if sent else None,
                sent_by_final=total(each.sent_by_final for each in every),
                settled_at=max(settled, default=None),
            ),
        )

    def with_hours(self, hours: Sequence[SentHour]) -> Account:
        return replace(self, hours=hours)

    def quantity_of(self, units: Decimal, hour_quantity: Decimal = ZERO, hour_units: Decimal = ZERO) -> Decimal:
        """Usage that ``units`` at Stripe stand for; by amount in proportion to what is rated, for the hour if known."""
        with localcontext(EXACT):
            if not self.by_amount:
                return units / self.scale
            if not hour_units:
                hour_quantity, hour_units = self.total.rated_quantity, self.total.rated_units
            return rounded(units * hour_quantity / hour_units, SCALE) if hour_units else ZERO

    def units_of(self, found: Break) -> Decimal:
        """Units at Stripe that a break stands for."""
        return EXACT.multiply(found.amount, MICRO) if self.by_amount else EXACT.multiply(found.quantity, self.scale)

    def amount_of(self, units: Decimal) -> Decimal:
        """What ``units`` at Stripe are worth: exactly by amount, at the period's average price by quantity."""
        with localcontext(EXACT):
            return units / MICRO if self.by_amount else self.worth(units / self.scale)

    def worth(self, quantity: Decimal) -> Decimal:
        """What a quantity is worth at the period's average price; 0 where nothing is rated."""
        with localcontext(EXACT):
            rated = self.total.rated_quantity
            return rounded(quantity * self.total.rated_amount / rated, SCALE) if rated else ZERO

    def found(self, step: str, cause: str, units: Decimal, detail: str, hour: SentHour | None = None) -> Break:
        """A break of ``units`` at Stripe."""
        rated = (hour.rated_quantity, hour.rated_units) if hour else (ZERO, ZERO)
        return Break(
            self.tenant_id, self.service, hour.hour if hour else None, step, cause, self.currency,
            self.quantity_of(units, *rated), self.amount_of(units), detail,
        )  # fmt: skip


def priced(difference: Difference, account: Account) -> Break:
    """An hourly difference as a break, with its worth."""
    d = difference
    if d.step in BILLING_STEPS:
        quantity = account.quantity_of(d.units, d.rated_quantity, d.rated_units)
        amount = account.amount_of(d.units)
    else:
        quantity = d.quantity
        amount = account.worth(d.quantity)
    return Break(d.tenant_id, d.service, d.hour, d.step, d.cause, account.currency, quantity, amount, d.detail)


def compare_account(account: Account, hourly: Sequence[Break], *, now: datetime, settle_lag: timedelta) -> list[Break]:
    """All breaks of one tenant's service, given those of its single hours. With the roundings they add up:

    rated + the amounts of all breaks between rated and invoiced + rounding = invoiced.
    """
    with localcontext(EXACT):
        breaks = [*_misplaced(hourly), *_planned(account), *_held(account, now, settle_lag), *_currency(account)]
        billed = account.billed
        if billed is None:
            return [*breaks, *_not_invoiced(account, now)]
        breaks += _invoiced(account, billed, now, settle_lag)
        breaks = _settle_worth(account, billed, breaks)
        return [*breaks, *_paid(account, billed)]


def _misplaced(hourly: Sequence[Break]) -> list[Break]:
    """``hourly``, with usage that metering booked on another hour than its own recognised as such."""
    metered: dict[str, list[tuple[datetime, Decimal]]] = {}
    for b in hourly:
        if b.step == "landed_metered" and b.cause != "pending" and b.hour is not None:
            metered.setdefault(b.tenant_id, []).append((b.hour, b.quantity))
    pairs = {tenant_id: _swapped(differences) for tenant_id, differences in metered.items()}
    return [
        replace(b, cause="wrong_hour", detail=f"{b.detail}; {other:%Y-%m-%d %H:%M} differs the other way")
        if b.step == "landed_metered" and b.cause != "pending" and b.hour is not None
        and (other := pairs[b.tenant_id].get(b.hour))
        else b
        for b in hourly
    ]  # fmt: skip


def _planned(account: Account) -> Iterator[Break]:
    """Whole units are planned so that they telescope: over the period they differ by less than one."""
    left = account.total.units - account.total.exact_units
    if abs(left) > Decimal("0.5"):
        yield account.found("rated_sent", "unexplained", left, "planned whole units do not add up to the exact ones")


# --- acknowledged against held -------------------------------------------------------------------------------------


def _held(account: Account, now: datetime, settle_lag: timedelta) -> Iterator[Break]:
    if account.held is None:
        return
    left = account.held - (account.total.sent or ZERO)
    # Hours count also where the total agrees: what is missing in one may be too much in another.
    known = {hour: hour.held - hour.sent for hour in account.hours if hour.held is not None and hour.held != hour.sent}
    pairs = _swapped((hour.hour, units) for hour, units in known.items())
    for hour, units in known.items():
        left -= units
        yield account.found("sent_held", *_hour_cause(hour, units, pairs, now, settle_lag), hour=hour)
    if left:
        settling = _settling(account.total.settled_at, now, settle_lag)
        yield account.found("sent_held", *_total_cause(left, settling))


def _swapped(differences: Iterable[tuple[datetime, Decimal]]) -> dict[datetime, datetime]:
    """Hours that miss exactly what another one has too much, both ways."""
    waiting: dict[Decimal, list[datetime]] = {}
    pairs: dict[datetime, datetime] = {}
    for hour, units in differences:
        if partners := waiting.get(-units):
            other = partners.pop(0)
            pairs[hour], pairs[other] = other, hour
        else:
            waiting.setdefault(units, []).append(hour)
    return pairs


def _hour_cause(
    hour: SentHour, units: Decimal, pairs: dict[datetime, datetime], now: datetime, settle_lag: timedelta
) -> tuple[str, Decimal, str]:
    shown = f"sent {plain(hour.sent)}, held {plain(hour.held or ZERO)} units"
    if hour.open_units and units == hour.open_units:
        return "pending", units, f"{shown}; a call of unknown outcome explains it"
    if _settling(hour.settled_at, now, settle_lag):
        return "pending", units, f"{shown}; Stripe is still settling"
    if hour.hour in pairs:
        return "wrong_hour", units, f"{shown}; the hour {pairs[hour.hour]:%Y-%m-%d %H:%M} differs the other way"
    if units < 0:
        return "lost_after_acknowledgement", units, shown
    if units in hour.values:
        return "counted_twice", units, f"{shown}; the value {plain(units)} is there once more"
    return "unknown_usage_at_stripe", units, shown


def _total_cause(units: Decimal, settling: bool) -> tuple[str, Decimal, str]:
    shown = "only the period's total is known"
    if settling:
        return "pending", units, f"{shown}; Stripe is still settling"
    return ("lost_after_acknowledgement" if units < 0 else "unknown_usage_at_stripe"), units, shown


def _settling(settled_at: datetime | None, now: datetime, settle_lag: timedelta) -> bool:
    return settled_at is not None and settled_at + settle_lag > now


# --- held against invoiced -----------------------------------------------------------------------------------------


def _not_invoiced(account: Account, now: datetime) -> Iterator[Break]:
    units = account.held if account.held is not None else account.total.sent
    if not units or account.closed_at is None or now < account.closed_at or account.foreign:
        return
    cause = "not_invoiced"
    if account.total.settled_at is not None and account.total.settled_at >= account.closed_at:
        cause = "late_after_finalisation"
    yield account.found("held_invoiced", cause, -units, "the period is closed and no invoice line bills it")


def _invoiced(account: Account, billed: Billed, now: datetime, settle_lag: timedelta) -> Iterator[Break]:
    basis = account.held if account.held is not None else (account.total.sent or ZERO)
    on_lines = total(line.quantity or ZERO for line in billed.lines)
    left = on_lines - max(basis, ZERO)
    final = max((line.finalized_at for line in billed.lines if line.finalized_at), default=None)
    if not left:
        return
    if final is None or any(line.finalized_at is None for line in billed.lines):
        yield account.found("held_invoiced", "pending", left, "the invoice is still a draft")
        return
    late = [(hour, hour.sent - hour.sent_by_final) for hour in account.hours if hour.sent != hour.sent_by_final]
    if late and left == -total(units for _, units in late):
        for hour, units in late:
            shown = f"acknowledged {hour.settled_at:%Y-%m-%d %H:%M} UTC, invoice final {final:%Y-%m-%d %H:%M} UTC"
            yield account.found("held_invoiced", "late_after_finalisation", -units, shown, hour=hour)
        return
    settled = account.total.settled_at
    if left < 0 and settled is not None and settled + settle_lag > final:
        shown = f"acknowledged until {settled:%Y-%m-%d %H:%M} UTC, invoice final {final:%Y-%m-%d %H:%M} UTC"
        yield account.found("held_invoiced", "late_after_finalisation", left, shown)
        return
    shown = f"the invoice bills {plain(on_lines)} units, Stripe's meter holds {plain(basis)}"
    yield account.found("held_invoiced", "unexplained", left, shown)


def _settle_worth(account: Account, billed: Billed, breaks: list[Break]) -> list[Break]:
    """``breaks`` with worths that add up to what is invoiced, and a break for the money that none of them explains.

    By amount a unit is worth exactly a millionth, so what is left is a difference of price. By quantity the worth of
    a missing unit is known only from the invoice: what is left falls to the breaks in proportion to their quantity,
    and the price is checked only when the quantities agree.
    """
    moving = [i for i, found in enumerate(breaks) if found.step in BILLING_STEPS]
    explained = total(breaks[i].amount for i in moving)
    left = billed.amount - account.total.rated_amount - explained
    if abs(left) <= billed.reach:
        return breaks
    quantities = [breaks[i].quantity for i in moving]
    if not account.by_amount and total(quantities):
        for i, share in zip(moving, shared_out(left, quantities, SCALE), strict=True):
            breaks[i] = replace(breaks[i], amount=breaks[i].amount + share)
        return breaks
    expected = account.total.rated_amount + explained
    shown = f"invoiced {plain(billed.amount)}, OpenClaw's amount is {plain(invoice_amount(expected, billed.currency))}"
    money = billed.amount - invoice_amount(expected, billed.currency)
    cause = "credit" if expected < 0 and not billed.amount else "price_differs"
    if cause == "credit":
        shown = f"usage comes to {plain(expected)}, and Stripe bills a negative total as 0"
    on_lines = total(line.quantity or ZERO for line in billed.lines)
    by_units = invoice_amount(account.amount_of(on_lines), billed.currency) if account.by_amount else None
    if cause == "price_differs" and by_units is not None and by_units == billed.amount:
        cause = "unexplained"
    return [
        *breaks,
        Break(account.tenant_id, account.service, None, "held_invoiced", cause, account.currency, ZERO, money, shown),
    ]


def _currency(account: Account) -> Iterator[Break]:
    for billed in account.foreign:
        yield Break(
            account.tenant_id, account.service, None, "held_invoiced", "currency", billed.currency, ZERO, billed.amount,
            f"invoiced in {billed.currency}, the rate card is in {account.currency}",
        )  # fmt: skip


def _paid(account: Account, billed: Billed) -> Iterator[Break]:
    """Why an invoice asks for more than its lines, and why a paid one brought less. Unpaid is no difference."""
    if tax := total(line.tax for line in billed.lines):
        yield Break(
            account.tenant_id, account.service, None, "invoiced_asked", "tax", account.currency, ZERO, tax,
            "tax on top of the invoice lines",
        )  # fmt: skip
    paid = [line for line in billed.lines if line.status == "paid" and line.paid is not None]
    discount = total(line.discount for line in paid)
    credit = total(line.credit for line in paid)
    left = total(line.paid or ZERO for line in paid) - total(line.amount for line in paid)
    rest = left + discount + credit
    for cause, amount, detail in (
        ("discount", -discount, "discounts on the invoice lines"),
        ("credit", -credit, "credit grants on the invoice lines"),
        ("credit" if rest < 0 else "unexplained", rest, "paid from the customer's balance or credited"),
    ):
        if amount:
            yield Break(
                account.tenant_id, account.service, None, "invoiced_paid", cause, account.currency, ZERO, amount, detail
            )
