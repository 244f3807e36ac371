"""Access logs of nginx and Apache (combined, common, and with the virtual host before) as usage: requests and bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from clawbill_pipeline.catalog.sources import AccessLog
from clawbill_pipeline.usage.events import Claims, Fault
from clawbill_pipeline.usage.inputs import Line

# %v:%p %h %l %u %t "%r" %>s %O "%{Referer}i" "%{User-Agent}i", the first and the last two being optional
# (httpd.apache.org/docs/2.4/mod/mod_log_config.html, nginx.org/en/docs/http/ngx_http_log_module.html).
_LINE = re.compile(
    r"(?:(?P<host>[^\s:]+)(?::\d+)? )?(?P<address>\S+) \S+ (?P<user>.*?) \[(?P<time>[^\]]+)\] "
    r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?P<bytes>\d+|-)(?: .*)?'
)
_REQUEST = re.compile(r"(?P<method>[A-Z]+) (?P<path>\S+)(?: HTTP/[\d.]+)?")


class AccessLogLines:
    """Lines of one file. ``first_line`` tells the file itself from any other, whatever rotation calls it later.

    Equal lines are several requests: a request's id is its line's number in its file.
    """

    def __init__(self, source: AccessLog, first_line: Callable[[], bytes]) -> None:
        self._source = source
        self._first_line = first_line

    @cached_property
    def _file(self) -> str:
        return hashlib.sha256(self._first_line().rstrip(b"\r")).hexdigest()[:20]

    def records(self, line: Line) -> list[Any]:
        text = line.raw.decode("utf-8", "backslashreplace").rstrip("\r")
        found = _LINE.fullmatch(text)
        if found is None:
            raise Fault(
                "not_an_access_log", "line", "the line is not of the combined format; see the server's log format"
            )
        request = _REQUEST.match(found["request"])
        said = {name: value or "" for name, value in found.groupdict().items()}
        return [
            {
                **said,
                "method": request["method"] if request else "-",
                "path": request["path"] if request else "-",
                "id": f"{self._file}:{line.number}",
            }
        ]

    def claims(self, record: Any) -> Sequence[Claims] | None:
        tenant = self._tenant(record)
        if tenant is None:
            if self._source.unmatched == "skip":
                return None
            raise Fault(
                "no_tenant", "tenants", "no rule of `tenants` fits this request; add one, or set unmatched: skip"
            )
        try:
            time = datetime.strptime(record["time"], "%d/%b/%Y:%H:%M:%S %z").astimezone(UTC).isoformat()
        except (ValueError, OverflowError):
            raise Fault(
                "time_unreadable", "time", f"{record['time'][:80]!r} is no time of an access log", tenant
            ) from None
        amounts = (
            (self._source.requests, "1"),
            (self._source.bytes, "0" if record["bytes"] == "-" else record["bytes"]),
        )
        return [
            Claims(f"{record['id']}#{service}", tenant, service, amount, time, record, _FIELDS)
            for service, amount in amounts
            if service is not None and amount != "0"
        ]

    def _tenant(self, record: dict[str, str]) -> str | None:
        for rule in self._source.tenants:
            found = re.search(rule.pattern, record[rule.by])
            if found is not None:
                return rule.tenant or found[1]
        return None

    def shown(self, record: Any) -> Any:
        return {name: value for name, value in record.items() if name != "id"}

    def raw(self, line: Line) -> bytes:
        return line.raw


_FIELDS = ("line", "tenants", "service", "bytes", "time")
