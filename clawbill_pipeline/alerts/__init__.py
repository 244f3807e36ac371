"""Alerts: who is told of what, once, and told again when it is over. Reading, composing and sending are files apart.

Like a station it knows nothing of what runs it. Nothing that bills depends on whether a message gets through.
"""
