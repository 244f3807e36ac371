"""Station 2: events in the lake to metered quantities per tenant, service and hour. No prices, no Dagster."""
