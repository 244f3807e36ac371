"""Stand-ins for a laptop (OpenClaw rating server, Stripe) and the demo. Never imported by a station."""
