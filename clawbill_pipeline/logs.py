"""Logs as JSON lines: an object a line, with the run, tenant and hour that it is about, and without secrets.

``CLAWBILL_LOG_FORMAT=json`` switches it on. Code says what a message is about in ``extra={"fields": {…}}``; what holds
for the whole process, as the run does, is said once, by ``about``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from clawbill_pipeline.masking import without_secrets
from clawbill_pipeline.settings import Settings

#: A shorter one is no secret, and would be found in the middle of words.
_SHORTEST, _SHORTEST_PART = 4, 8
#: Of this process: a run has one of its own, and its threads speak of the same.
_about: dict[str, Any] = {}


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Every message of this process has these fields while it lasts; those that are None are left out."""
    before = dict(_about)
    _about.update({name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _about.clear()
        _about.update(before)


class JsonLines(logging.Formatter):
    """``at``, ``level``, ``logger``, ``event`` (the message), the fields it is about, and ``exception`` if any.

    ``secrets`` never appear, whatever they look like; what looks like one doesn't either.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_about,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: self._shown(value) for name, value in line.items()}, ensure_ascii=False)

    def _shown(self, value: Any) -> Any:
        if isinstance(value, int | float | None):
            return value
        text = value.isoformat() if isinstance(value, datetime) else str(value)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return without_secrets(text)


def log_as_json(settings: Settings, *loggers: str, stream: TextIO | None = None) -> bool:
    """Makes ``loggers`` ("" is the root) write JSON lines to ``stream``, or standard error, if the settings ask for it.

    Ours say what they do (INFO), others what goes wrong (WARNING). Returns whether the settings asked for it.
    """
    if settings.log_format != "json":
        return False
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(secrets_of(settings)))
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("clawbill_pipeline").setLevel(logging.INFO)
    return True


def secrets_of(settings: Settings) -> set[str]:
    """All secrets in the settings, the password in the database's URL, and the parts of addresses that alerts go to."""
    values = [getattr(settings, name) for name in type(settings).model_fields]
    found = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
    secrets = {each.get_secret_value() for each in found if isinstance(each, SecretStr)}
    if settings.database_url is not None:
        with suppress(ArgumentError):
            secrets.add(str(make_url(settings.database_url.get_secret_value()).password or ""))
    if settings.alerts is not None:
        # Which part of an address is the secret one is known to the receiver alone.
        secrets |= {
            part
            for address in re.findall(r"\w+://\S+", settings.alerts.get_secret_value())
            for part in re.split(r"[/?&=@:;]+", address)[1:]
            if len(part) >= _SHORTEST_PART
        }
    return {secret for secret in secrets if len(secret) >= _SHORTEST}
