"""Tells people of open breaks, stale sources, unusual volumes and the like. What and whom is in alerts/."""

import dagster as dg

from clawbill_pipeline.alerts.matters import Owners
from clawbill_pipeline.alerts.routes import parse_routes
from clawbill_pipeline.alerts.telling import tell
from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings


def owners_of(repository: dg.RepositoryDefinition) -> Owners:
    """The owners of every asset, as the definitions have them, by the last part of its key: the name it has here."""
    graph = repository.asset_graph
    return {key.path[-1]: frozenset(graph.get(key).owners) for key in graph.get_all_asset_keys()}


@dg.sensor(minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING, name="alerts")
def alerts(
    context: dg.SensorEvaluationContext,
    settings: dg.ResourceParam[Settings],
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> dg.SkipReason:
    """Starts no run: looks once a minute what is new or over since, and sends one message a route and topic."""
    if settings.alerts is None:
        return dg.SkipReason("CLAWBILL_ALERTS is not set: nobody is told.")
    assert context.repository_def is not None  # noqa: S101 -- a tick has one
    routes = parse_routes(settings.alerts.get_secret_value())
    told = tell(ledger, catalog, routes, owners_of(context.repository_def), now=clock(), link=settings.web_url)
    for problem in told.problems:
        context.log.warning(problem)
    return dg.SkipReason(f"{told.messages} messages sent, {len(told.problems)} to be tried again.")
