"""The billing catalogue: YAML to checked models of sources, services, rate cards, tenants and calendar. No I/O but the file."""
