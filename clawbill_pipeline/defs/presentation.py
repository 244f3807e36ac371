"""How a station's result is shown in the Dagster UI: metadata, columns, owners, check results. No work is done here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from clawbill_pipeline.money import plain
from clawbill_pipeline.results import Check

#: Rows of a list that the UI shows; the whole list is in the ledger.
_SHOWN = 200
DATA = "team:data-engineering"
FINANCE = "team:finance"


def check(name: str, description: str, *, blocking: bool = False) -> tuple[str, str, bool]:
    """A statement that an asset makes about its own result; ``blocking`` stops what comes after it in the run."""
    return name, description, blocking


def specs(asset: str, *checks: tuple[str, str, bool]) -> list[dg.AssetCheckSpec]:
    """The check specs of an asset that returns results under these names."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=text, blocking=blocking) for name, text, blocking in checks
    ]


def table(source: Table) -> Mapping[str, Any]:
    """Definition metadata for an asset that writes one of the ledger's tables: its name and columns."""
    columns = [
        dg.TableColumn(
            column.name,
            type=str(column.type.compile(dialect=_DIALECT)).lower(),
            description=column.comment,
            constraints=dg.TableColumnConstraints(nullable=bool(column.nullable)),
        )
        for column in source.columns
    ]
    return {"dagster/column_schema": dg.TableSchema(columns=columns), "dagster/table_name": source.fullname}


def columns(**described: str) -> Mapping[str, Any]:
    """Definition metadata for an asset that is no table: columns as ``name="type: what it is"``."""
    made = []
    for name, text in described.items():
        kind, _, description = text.partition(": ")
        made.append(dg.TableColumn(name, type=kind, description=description))
    return {"dagster/column_schema": dg.TableSchema(columns=made)}


def materialized(*results: Any, rows: int | None = None, **more: object) -> dg.MaterializeResult[None]:
    """Results of stations (dataclasses) as Dagster shows them: every field as metadata, every check as its result.

    Of several results with the same fields the last one's are shown, of a check that several have the first that
    fails. ``rows`` becomes the asset's row count; ``more`` is further metadata.
    """
    metadata: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for result in results:
        fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        fields.pop("checks", None)
        for made in getattr(result, "checks", ()):
            if made.name not in checks or checks[made.name].passed:
                checks[made.name] = made
        metadata |= {name: shown(value) for name, value in fields.items() if value is not None}
    metadata |= {name: shown(value) for name, value in more.items()}
    if rows is not None:
        metadata["dagster/row_count"] = rows
    return dg.MaterializeResult(
        metadata=metadata,
        check_results=[
            dg.AssetCheckResult(
                passed=made.passed,
                check_name=made.name,
                severity=dg.AssetCheckSeverity.ERROR if made.serious else dg.AssetCheckSeverity.WARN,
                description=made.description,
                metadata={name: shown(value) for name, value in made.numbers.items() if value is not None},
            )
            for made in checks.values()
        ],
    )


def shown(value: object) -> Any:
    """``value`` as Dagster metadata, which knows no Decimal, no datetime and no set."""
    match value:
        case bool() | int() | str() | dg.MetadataValue():
            return value
        case Decimal():
            return plain(value)
        case datetime():
            return value.isoformat()
        case Path():
            return dg.MetadataValue.path(str(value))
        case Mapping():
            return dg.MetadataValue.json({str(key): _json(item) for key, item in value.items()})
        case _ if isinstance(value, Iterable):
            items = [_json(item) for item in value]
            if items and all(isinstance(item, dict) for item in items):
                return _rows(items)
            more = [f"… and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
            return dg.MetadataValue.json(items[:_SHOWN] + more)
        case _:
            return str(value)


def _rows(items: list[dict[str, Any]]) -> dg.TableMetadataValue:
    """Things of one kind as a table, the first two hundred of them."""
    kinds = dict.fromkeys(name for item in items for name in item)
    records = [dg.TableRecord({name: _cell(item.get(name)) for name in kinds}) for item in items[:_SHOWN]]
    return dg.MetadataValue.table(records, schema=dg.TableSchema([dg.TableColumn(name) for name in kinds]))


def _cell(value: object) -> str | int | bool:
    return value if isinstance(value, bool | int | str) else "" if value is None else json.dumps(value)


def _json(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Decimal):
        return plain(value)
    return value if isinstance(value, bool | int | str | None) else str(value)


_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
