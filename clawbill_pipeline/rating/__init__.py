"""Station 3: metered quantities to amounts, through OpenClaw. Also the pure rating engine. No Stripe, no Dagster."""
