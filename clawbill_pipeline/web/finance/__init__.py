"""The finance pages: who may see them, what they read from the ledger, and how they look. They bill nothing."""
