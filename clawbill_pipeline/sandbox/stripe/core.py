"""What every resource module works with: the sandbox, one call on it, routes, and how objects are shown and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from clawbill_pipeline.sandbox.stripe.clock import Clock
from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.errors import ApiError, invalid, missing
from clawbill_pipeline.sandbox.stripe.store import Store

#: The API versions that are kept: the SDK's own, and the last one with usage records.
CURRENT = "2026-10-28.endive"
LEGACY = "2025-02-24.acacia"

Document: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Call:
    """One request of an account, or one effect of its time passing (then without request id and key)."""

    store: Store
    clock: Clock
    account: str
    version: str = CURRENT
    request_id: str | None = None
    idempotency_key: str | None = None

    @property
    def now(self) -> int:
        """Unix seconds on the sandbox's clock."""
        return self.clock.now()

    def find(self, kind: str, identifier: str, *, param: str = "id", noun: str | None = None) -> Document:
        """The object, or Stripe's "No such ...": 404 for one in the path (``param="id"``), else 400."""
        found = self.store.get(self.account, kind, identifier)
        if found is None:
            raise missing(noun or kind.replace("_", " "), identifier, param, 404 if param == "id" else 400)
        return found

    def new_id(self, prefix: str) -> str:
        return self.store.new_id(self.account, prefix)

    def put(self, kind: str, obj: Document) -> Document:
        return self.store.put(self.account, kind, obj)


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the API. The handler gets the call, the checked parameters and what the path names."""

    method: str
    path: str
    contract: Contract
    handler: Callable[..., Document]
    only_version: str | None = None
    #: Authenticated by the token of a meter event session instead of a key.
    by_session: bool = False
    #: The handler writes last, when nothing can be refused any more: no savepoint of its own is needed.
    lean: bool = False
    #: What of its parameters only one call at a time may work on.
    alone: Callable[[Document], tuple[str, ...]] | None = None


#: How an object of a kind is shown, where that is more than leaving out the ``_`` keys; filled by resource modules.
VIEWS: dict[str, Callable[[Call, Document], Document]] = {}
#: Names of fields whose value is the id of another object: what ``expand`` can open.
LINKS = {
    "customer": "customer",
    "product": "product",
    "price": "price",
    "subscription": "subscription",
    "latest_invoice": "invoice",
    "invoice": "invoice",
}


def shown(call: Call, kind: str, obj: Document) -> Document:
    """The object as the API answers it."""
    view = VIEWS.get(kind)
    return view(call, obj) if view else public(obj)


def rfc3339(moment: int) -> str:
    """Unix seconds as the v2 API writes them."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def unix(text: str) -> int | None:
    """Unix seconds of an RFC 3339 time with its offset; None for other text."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int(moment.timestamp()) if moment.tzinfo else None


def public(obj: Document) -> Document:
    """``obj`` without the sandbox's own keys."""
    return {key: value for key, value in obj.items() if not key.startswith("_")}


def merged_metadata(old: Document, change: Document | str | None) -> Document:
    """Stripe's rule: keys are merged, an empty value takes one out, an empty string takes all out."""
    if change is None:
        return old
    if not isinstance(change, dict):
        return {}
    return {key: value for key, value in {**old, **change}.items() if value != ""}


def expanded(call: Call, answer: Document, paths: list[str]) -> Document:
    """``answer`` with the ids that ``paths`` name replaced by objects. Raises ApiError (400) for one it cannot open."""
    for path in paths:
        if path.count(".") > 3:
            raise invalid("You cannot expand more than 4 levels of a property", "expand")
        if not _opened(call, answer, path.split(".")):
            raise invalid(f"This property cannot be expanded ({path}).", "expand")
    return answer


def _opened(call: Call, place: Any, steps: list[str]) -> bool:
    if isinstance(place, list):
        return all(_opened(call, entry, steps) for entry in place)
    if not isinstance(place, dict):
        return place is None
    name, rest = steps[0], steps[1:]
    if name == "tiers" and place.get("object") == "price" and not rest:
        place["tiers"] = call.find("price", place["id"])["_tiers"]
        return True
    if name not in place:
        return False
    value = place[name]
    kind = LINKS.get(name)
    if isinstance(value, str) and kind:
        value = place[name] = shown(call, kind, call.find(kind, value))
    elif not rest and not isinstance(value, dict):
        return value is None and kind is not None
    return not rest or _opened(call, value, rest)


def page(
    call: Call,
    kind: str,
    params: Document,
    url: str,
    *,
    where: dict[str, Any] | None = None,
    keep: Callable[[Document], bool] | None = None,
    noun: str | None = None,
    oldest_first: bool = False,
) -> Document:
    """A list answer, newest first, by Stripe's cursors. ``where`` filters by column, ``keep`` by the object."""
    limit = checked_limit(params)
    after, before = params.get("starting_after"), params.get("ending_before")
    if after is not None and before is not None:
        raise invalid("You may only specify one of these parameters: starting_after, ending_before.", "starting_after")
    tests = ["account = ?", "kind = ?"]
    values: list[Any] = [call.account, kind]
    for column, value in (where or {}).items():
        if value is not None:
            tests.append(f"{column} = ?")
            values.append(value)
    for test, bound in created_tests(params.get("created")):
        tests.append(test)
        values.append(bound)
    backwards = before is not None
    ascending = oldest_first != backwards
    cursor = after if after is not None else before
    if cursor is not None:
        sql = "SELECT seq FROM objects WHERE account = ? AND kind = ? AND id = ?"
        row = call.store.db.execute(sql, (call.account, kind, cursor)).fetchone()
        if row is None:
            raise missing(
                noun or kind.replace("_", " "), cursor, "ending_before" if backwards else "starting_after", 400
            )
        tests.append("seq > ?" if ascending else "seq < ?")
        values.append(row["seq"])
    order = "ASC" if ascending else "DESC"
    sql = f"SELECT id FROM objects WHERE {' AND '.join(tests)} ORDER BY seq {order}"  # noqa: S608 (own names)
    found = list(_taken(call, kind, sql, values, keep, limit + 1))
    entries = found[:limit]
    if backwards:
        entries.reverse()
    return list_of([shown(call, kind, entry) for entry in entries], url, len(found) > limit)


def _taken(
    call: Call, kind: str, sql: str, values: list[Any], keep: Callable[[Document], bool] | None, most: int
) -> Iterator[Document]:
    for row in call.store.db.execute(sql, values):
        obj = call.find(kind, row["id"])
        if keep is None or keep(obj):
            yield obj
            most -= 1
            if most == 0:
                return


def checked_limit(params: Document) -> int:
    """``limit``: 10 by default, at most 100."""
    limit: int = params.get("limit", 10)
    if limit < 1:
        raise ApiError(400, "This value must be greater than or equal to 1.", param="limit")
    if limit > 100:
        raise ApiError(400, "This value must be less than or equal to 100.", param="limit")
    return limit


def created_tests(created: int | dict[str, int] | None) -> list[tuple[str, int]]:
    """SQL tests for the ``created`` filter of lists."""
    if created is None:
        return []
    if isinstance(created, int):
        return [("created = ?", created)]
    signs = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
    return [(f"created {signs[name]} ?", bound) for name, bound in created.items()]


def list_of(entries: list[Document], url: str, more: bool = False) -> Document:
    """Stripe's list object."""
    return {"object": "list", "data": entries, "has_more": more, "url": url}
