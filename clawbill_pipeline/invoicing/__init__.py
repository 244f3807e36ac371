"""Station 5: what Stripe says. Landed events become invoices, their lines, and how each tenant stands.

Events: the webhook and ``sweep`` write the inbox by ``landing``; ``events`` reads what one says, ``inbox`` applies it
with what ``fetching`` asks Stripe for, ``rows`` are its tables. Standing: ``states`` is the machine, ``dunning`` what
time does, ``standing`` the report to OpenClaw. The close: ``draft`` judges, ``booked`` reads what it judges by,
``close`` acts on it. What came too late: ``adjustments`` proposes, and ``adjusting`` does what a person decides; how
each stands is in the ledger (``adjustment_log``).
"""
