"""Files below a prefix of an object store: S3 and what speaks like it, Google's, Azure's. Not what is in them.

Credentials come from the environment by their usual names (``AWS_…``, ``GOOGLE_…``, ``AZURE_…``) or from the role of
the machine; they are in no message. An object is whole: it is replaced, never written into.
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import obstore
from fsspec.utils import glob_translate
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store

if TYPE_CHECKING:
    from obstore.store import AzureConfig, BackoffConfig, ClientConfig, GCSConfig, RetryConfig, S3Config

_ADDRESS = re.compile(r"(?P<scheme>s3|gs|az)://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]+)(?:/(?P<prefix>.*))?")
#: Read at a time where less is asked for: a request costs as long as some megabytes take.
_BUFFER = 4 * 1024 * 1024
#: How often, and how long at most, a store that is away (5xx, 429, no connection) is asked again before that is an
#: error: longer than a minute, which such things last.
PATIENT = 25
_PATIENCE = timedelta(seconds=100)
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(milliseconds=200), timedelta(seconds=10)


class StoreError(OSError):
    """An object store did not do what it was asked for; the message names the object and what to do."""

    number = errno.EIO

    def __init__(self, message: str) -> None:
        super().__init__(self.number, message)

    def __str__(self) -> str:
        return str(self.strerror)


class Gone(StoreError, FileNotFoundError):
    """There is no such object."""

    number = errno.ENOENT


class Replaced(StoreError):
    """The object was replaced while it was read: what was read of it belongs to no version."""

    number = errno.ESTALE


class Listed(NamedTuple):
    """An object as a listing has it. ``name`` is below the folder's prefix; ``tag`` changes with the content."""

    name: str
    size: int
    modified: datetime
    tag: str | None


def is_address(text: object) -> bool:
    """Whether ``text`` is of the form ``scheme://…``, and so no path of a file system."""
    return isinstance(text, str) and "://" in text


class ObjectFolder:
    """What lies below ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

    ``endpoint`` is the address of another server that speaks the store's language; by default it is what the
    environment says (``AWS_ENDPOINT_URL``), or the vendor's own. Raises ValueError for an address of another form.
    """

    def __init__(self, address: str, *, endpoint: str | None = None, tries: int | None = None) -> None:
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise ValueError(
                f"{address!r} is no address of an object store; write s3://bucket/prefix, gs://bucket/prefix or "
                "az://container/prefix"
            )
        self._scheme, self.bucket, prefix = found["scheme"], found["bucket"], found["prefix"] or ""
        self.prefix = prefix.strip("/")
        self.address = "/".join(filter(None, (f"{self._scheme}://{self.bucket}", self.prefix)))
        self._endpoint = endpoint
        self._tries = PATIENT if tries is None else tries

    def __repr__(self) -> str:
        return f"ObjectFolder({self.address!r})"

    @cached_property
    def _store(self) -> S3Store | GCSStore | AzureStore:
        # An address that says http means it.
        client: ClientConfig = {"allow_http": True}
        # Pauses are drawn between the first one and so many times the last one.
        pauses: BackoffConfig = {"init_backoff": _FIRST_PAUSE, "max_backoff": _LONGEST_PAUSE, "base": 3}
        retry: RetryConfig = {"max_retries": self._tries, "retry_timeout": _PATIENCE, "backoff": pauses}
        prefix, endpoint = self.prefix or None, self._endpoint
        with self._clear():
            if self._scheme == "s3":
                s3: S3Config = {"endpoint": endpoint} if endpoint else {}
                return S3Store(self.bucket, prefix=prefix, config=s3, client_options=client, retry_config=retry)
            if self._scheme == "gs":
                gs: GCSConfig = {"base_url": endpoint} if endpoint else {}
                return GCSStore(self.bucket, prefix=prefix, config=gs, client_options=client, retry_config=retry)
            az: AzureConfig = {"endpoint": endpoint} if endpoint else {}
            return AzureStore(self.bucket, prefix=prefix, config=az, client_options=client, retry_config=retry)

    def of(self, name: str) -> str:
        """The full address of an object."""
        return f"{self.address}/{name}"

    def matching(self, patterns: Sequence[str]) -> list[Listed]:
        """The objects whose names match one of the patterns, in order. Only what all of them can match is listed."""
        fits = [re.compile(glob_translate(pattern)) for pattern in patterns]
        under = {"/".join(_fixed(pattern)) for pattern in patterns}
        found: dict[str, Listed] = {}
        for place in under if "" not in under else {""}:
            for one in self.listed(place):
                if any(fit.match(one.name) for fit in fits):
                    found[one.name] = one
        return [found[name] for name in sorted(found)]

    def listed(self, under: str = "") -> Iterator[Listed]:
        """The objects in the folder ``under`` and all folders in it."""
        with self._clear(under):
            for page in obstore.list(self._store, under or None):
                for one in page:
                    yield Listed(one["path"], one["size"], one["last_modified"], one["e_tag"])

    def open(self, object: Listed) -> io.BufferedReader:
        """The bytes of this very version, read by ranges. Reading raises Replaced once there is another one."""
        return io.BufferedReader(_Ranges(self, object), _BUFFER)

    def find(self, name: str) -> Listed:
        """The object as it is now. Raises Gone."""
        with self._clear(name):
            one = obstore.head(self._store, name)
        return Listed(name, one["size"], one["last_modified"], one["e_tag"])

    def range(self, object: Listed, start: int, size: int) -> memoryview:
        """``size`` bytes from ``start`` on, fewer at the end."""
        end = min(start + size, object.size)
        if end <= start:
            return memoryview(b"")
        with self._clear(object.name):
            got = obstore.get(self._store, object.name, options={"range": (start, end), "if_match": object.tag})
            if got.meta["size"] != object.size:  # where the store has no tags
                raise Replaced(f"{self.of(object.name)}: it was replaced while it was read")
            return memoryview(got.bytes())

    def read(self, name: str) -> bytes:
        """All of an object. Raises Gone."""
        with self._clear(name):
            return bytes(obstore.get(self._store, name).bytes())

    def write(self, name: str, content: bytes | Path) -> None:
        """Puts an object there, or another in its place; it is stored durably, and whole, when this returns."""
        with self._clear(name):
            obstore.put(self._store, name, content)

    def delete(self, names: Sequence[str]) -> None:
        """Takes objects away; one that is gone already is no error."""
        with self._clear():
            if names:
                obstore.delete(self._store, list(names))

    def exists(self, name: str) -> bool:
        try:
            self.find(name)
        except Gone:
            return False
        return True

    @contextmanager
    def _clear(self, name: str = "") -> Iterator[None]:
        """Errors of the store as StoreError, in words that say what to do."""
        try:
            yield
        except StoreError:
            raise
        except (BaseError, OSError) as error:
            raise self._error(self.of(name) if name else self.address, error) from None

    def _error(self, address: str, error: Exception) -> StoreError:
        said = str(error).partition("Debug source")[0]
        code = (re.search(r"<Code>(\w+)</Code>", said) or [""] * 2)[1]
        status = (re.search(r"status code: (\d{3})", said) or [""] * 2)[1]
        answer = " ".join(filter(None, (status, code)))
        if isinstance(error, PreconditionError):
            return Replaced(f"{address}: it was replaced while it was read")
        if code == "NoSuchBucket" or (isinstance(error, FileNotFoundError) and address == self.address):
            return Gone(f"{address}: there is no bucket {self.bucket!r}; correct the address, or make the bucket")
        if isinstance(error, FileNotFoundError) or status == "404":
            return Gone(f"{address}: there is no such object")
        if "169.254.169.254" in said or ("credential" in said.lower() and not status):
            return StoreError(f"{address}: no credentials for it were found in the environment, and the machine has no "
                              f"role; {_CREDENTIALS[self._scheme]}")  # fmt: skip
        if status in ("401", "403"):
            return StoreError(f"{address}: no permission ({answer}); {_CREDENTIALS[self._scheme]}, of one who may list "
                              "and read it (and write, for the lake)")  # fmt: skip
        if "invalid path" in said:
            found = (re.search(r'Path "(.*?)"', said) or ["", "one of them"])[1]
            return StoreError(
                f"{address}: nothing can be listed beside the object {found!r}, since its name has an empty part or a "
                "control character; move it, or choose a prefix or a pattern beside it"
            )
        if status in ("301", "307") or "configured region" in said:
            return StoreError(f"{address}: the bucket is in another region; set AWS_REGION to its own")
        if status == "429" or status.startswith("5"):
            tried = re.search(r"after (\d+) retries", said)
            often = f", after {int(tried[1]) + 1} tries" if tried else ""
            return StoreError(f"{address}: the store is busy or away ({answer}{often}); it is tried again next time")
        if status:
            return StoreError(f"{address}: the store refused ({answer})")
        if "error sending request" in said or "timed out" in said.lower():
            where = f" at {self._endpoint}" if self._endpoint else ""
            return StoreError(f"{address}: the store{where} can't be reached; it is tried again next time. Check the "
                              "network and the endpoint")  # fmt: skip
        return StoreError(f"{address}: {said.splitlines()[0][:300] if said.strip() else type(error).__name__}")


_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class _Ranges(io.RawIOBase):
    """An object as a file to be read; nothing is asked for twice but by its reader."""

    def __init__(self, folder: ObjectFolder, object: Listed) -> None:
        self._folder = folder
        self._object = object
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._object.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._folder.range(self._object, self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _fixed(pattern: str) -> list[str]:
    """The leading folders of a pattern that are names."""
    *folders, _ = pattern.split("/")
    for number, folder in enumerate(folders):
        if re.search(r"[*?\[]", folder):
            return folders[:number]
    return folders
