"""Station 6: compares usage, rating, delivery, invoices and payments, and names every difference. No Dagster."""
