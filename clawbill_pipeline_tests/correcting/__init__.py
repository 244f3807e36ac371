"""Corrections of breaks, against a real ledger and the Stripe and OpenClaw stand-ins."""
