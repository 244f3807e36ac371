"""Station 5: what Stripe says. Landed events become invoices, their lines, and how each tenant stands.

``landing`` is the inbox that the webhook and the sweep write, ``events`` reads what an event says, ``inbox`` applies
it, ``standing`` moves the tenants and tells OpenClaw.
"""
