"""The users file: who may sign in, with which role, for which tenants. Reads, checks and writes it; no HTTP in here.

YAML (or JSON, which is YAML), one entry a user; `clawbill users add` writes it::

    anna: {role: finance, password: $argon2id$…}
    ben: {role: read-only, password: $argon2id$…, tenants: [globex]}
    carla: {role: engineer}   # no password: comes through the authenticating proxy only
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator

from clawbill_pipeline.settings import SettingsError
from clawbill_pipeline.stack import write_private

Role = Literal["finance", "engineer", "read-only"]
ROLES: tuple[Role, ...] = ("finance", "engineer", "read-only")

#: Shortest password that is taken.
SHORTEST = 12
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
_HASHER = PasswordHasher()


class UsersError(SettingsError):
    """The users file can't be used; the message names the file, the field and the fix, and shows no hash."""


class User(BaseModel):
    """One user. ``tenants`` is None for all of them; ``password`` an argon2 hash, None where the proxy signs in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    password: str | None = None
    tenants: tuple[str, ...] | None = None

    @field_validator("password")
    @classmethod
    def _is_argon2(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("$argon2"):
            raise ValueError("must be an argon2 hash, never the password itself; write it with: clawbill users add")
        return value

    @property
    def mark(self) -> str:
        """Changes with the password, so that a new one ends the sessions of the old one."""
        return hashlib.sha256((self.password or "").encode()).hexdigest()[:16]


Users = Mapping[str, User]
_FILE = TypeAdapter(dict[str, User])
#: What a password is checked against where no such user is, so that the time taken tells nothing.
_NOBODY = User(role="read-only", password=_HASHER.hash("nobody"))


def parse_users(content: str, path: Path) -> dict[str, User]:
    """The users that ``content`` of ``path`` names. Raises UsersError."""
    try:
        found = yaml.safe_load(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsersError(f"{path}{where}: not YAML; write users with: clawbill users add NAME --role finance") from None
    try:
        users = _FILE.validate_python({} if found is None else found)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UsersError(f"{path}: {place}: {first['msg']}") from None
    for name in users:
        check_name(name)
    return users


def check_name(name: str) -> str:
    """``name`` where it can be a user's. Raises UsersError."""
    if not _NAME.fullmatch(name):
        raise UsersError(f"{name!r} is no user name; use letters, digits and . _ @ + -, at most 100")
    return name


def write_users(path: Path, users: Users) -> None:
    """Puts ``users`` in place of what ``path`` held; only its owner can read it."""
    entries = {name: users[name].model_dump(mode="json", exclude_none=True) for name in sorted(users)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, yaml.safe_dump(entries, sort_keys=True, allow_unicode=True))


def hashed(password: str) -> str:
    """The argon2 hash to keep. Raises UsersError for a password that is too short."""
    if len(password) < SHORTEST:
        raise UsersError(f"a password needs at least {SHORTEST} characters")
    return _HASHER.hash(password)


def verified(users: Users, name: str, password: str) -> User | None:
    """The user of that name where ``password`` is theirs. Takes as long for a name that nobody has."""
    user = users.get(name, _NOBODY)
    kept = user.password or _NOBODY.password
    try:
        _HASHER.verify(str(kept), password)
    except (VerificationError, InvalidHashError):
        return None
    return user if name in users and user.password else None


class UsersFile:
    """The users as the file says now: read again when it changed, so that nothing needs a restart."""

    def __init__(self, path: Path, *, required: bool) -> None:
        self._path = path
        self._required = required
        self._seen: tuple[int, int, int] | None = None
        self._users: dict[str, User] = {}

    def current(self) -> Users | None:
        """None where no accounts are set up. Raises UsersError for a file that is damaged, or named and missing."""
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self._users = parse_users(self._path.read_text(encoding="utf-8"), self._path)
                self._seen = seen
        except FileNotFoundError:
            self._seen = None
            if self._required:
                raise UsersError(f"{self._path} is not there; write it with: clawbill users add") from None
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UsersError(f"{self._path} can't be read: {type(error).__name__}") from None
        return self._users
