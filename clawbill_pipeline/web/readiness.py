"""Which parts beside the database must be ready before the web app says that all is: Dagster, and the two services.

The addresses come from the environment that `clawbill up` starts the app with; what is not named is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import httpx

_DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { required healthy } } } }"


def readiness(env: Mapping[str, str]) -> Callable[[], Mapping[str, bool]]:
    """A function that asks each part of ``env`` and answers by name. A stand-in counts as ready when it answers."""
    dagster = env.get("CLAWBILL_DAGSTER_URL")
    stripe = env.get("CLAWBILL_STRIPE_API_BASE")
    openclaw = env.get("OPENCLAW_URL")

    def ready() -> Mapping[str, bool]:
        parts: dict[str, bool] = {}
        with httpx.Client(timeout=5, trust_env=False) as http:
            if stripe:
                parts["stripe"] = _answers(http, stripe)
            if openclaw:
                parts["openclaw"] = _answers(http, openclaw)
            if dagster:
                parts["dagster_webserver"], parts["dagster_daemon"] = _dagster(http, dagster)
        return parts

    return ready


def _answers(http: httpx.Client, address: str) -> bool:
    """Whether a server is there: any HTTP answer will do, for a real OpenClaw need not know our paths."""
    try:
        http.get(address)
    except httpx.HTTPError:
        return False
    return True


def _dagster(http: httpx.Client, address: str) -> tuple[bool, bool]:
    try:
        answer = http.post(f"{address}/graphql", json={"query": _DAEMONS})
        statuses = answer.raise_for_status().json()["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
    except (httpx.HTTPError, KeyError, TypeError, ValueError):
        return False, False
    return True, all(status["healthy"] for status in statuses if status["required"])
