"""clawbill: from raw usage logs to invoices that explain themselves. Holds the version, nothing else."""

__version__ = "0.1.0"
