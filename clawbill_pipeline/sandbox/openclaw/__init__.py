"""An OpenClaw rating server: the contract over real HTTP, rates from a catalogue's rate cards, tenant status on disk.

``rating`` turns a request into an answer; around it are ``app`` (HTTP, token, limits), ``rates`` (the catalogue and
its reloading), ``standing`` (tenant status), ``problems`` (errors) and ``server`` (the process).
"""

from clawbill_pipeline.sandbox.openclaw.server import serve

__all__ = ["serve"]
