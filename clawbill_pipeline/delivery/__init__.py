"""Station 4: rated usage to Stripe, through an outbox; and provisioning of the Stripe side. No Dagster."""
