"""Station 5: landed Stripe events to invoices, invoice lines and tenant standing. No Dagster."""
