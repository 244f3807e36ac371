"""Whom the embedded server runs as, and what that account may reach. Nothing about PostgreSQL's files or its state.

PostgreSQL refuses uid 0. For root there are two ways: a user namespace in which root is mapped to an ordinary user (no
file changes hands), or, where namespaces are forbidden as in many containers, the system's ``nobody``.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

#: ``namespace`` or ``user``: which of the two ways root insists on.
SWITCH = "CLAWBILL_POSTGRES_AS"
_USER = "nobody"
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  # no PG* variable reaches the server, no key of ours


@dataclass(frozen=True)
class Account:
    """As we are; in a user namespace, by ``prefix``; or as another user, by ``uid`` and ``gid``."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def run(self, command: list[str], output: IO[bytes] | int = subprocess.DEVNULL) -> int:
        """The exit code of ``command``, run as this account. It does not outlive an interrupt of ours."""
        return subprocess.call([*self.prefix, *command], stdout=output, stderr=output, **self._how())  # noqa: S603

    def launch(self, command: list[str], output: IO[bytes], inherit: int) -> subprocess.Popen[bytes]:
        """Start ``command`` for good: a session of its own (Ctrl-C is not for it) and no handle of ours but two."""
        return subprocess.Popen(  # noqa: S603
            [*self.prefix, *command],
            stdout=output,
            stderr=output,
            pass_fds=(inherit,),
            start_new_session=True,
            **self._how(),
        )

    def can(self, access: str, path: Path) -> bool:
        """``access`` is ``-x`` or ``-r`` of test(1). Also False where running as this account is forbidden."""
        try:
            return self.run(["test", access, str(path)]) == 0
        except OSError:
            return False

    def own(self, path: Path) -> None:
        """Make this account the owner of ``path`` and of all below it."""
        uid = os.geteuid() if self.uid is None else self.uid
        gid = os.getegid() if self.gid is None else self.gid
        if path.stat().st_uid != uid:
            for entry in [*path.rglob("*"), path]:  # the top comes last: it tells whether the work was finished
                os.chown(entry, uid, gid, follow_symlinks=False)

    def enter(self, folder: Path) -> bool:
        """Let this account, and nobody else, pass through our ``folder``. False if its parents bar the way."""
        if self.gid is None:
            folder.chmod(0o700)
        else:
            os.chown(folder, -1, self.gid)
            folder.chmod(0o710)
        return self.can("-x", folder)

    def _how(self) -> dict[str, Any]:
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": "/", "env": _ENVIRONMENT, "umask": 0o077}
        if self.uid is not None:
            how |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return how


def choose() -> Account | None:
    """The account to run PostgreSQL as on this machine; None if there is none."""
    me = os.geteuid()
    users = {user.pw_uid: user for user in pwd.getpwall()}
    if me != 0 and me in users:
        return Account()
    # initdb looks up the name of its uid. A container's nameless uid therefore wants the namespace as root does.
    other = next((user for user in users.values() if user.pw_name == _USER), None)
    if other is None:
        return None
    ids = (f"--map-user={other.pw_uid}", f"--map-group={other.pw_gid}")
    ways = {"namespace": Account(prefix=("unshare", "--user", *ids))}
    if me == 0:
        ways["user"] = Account(uid=other.pw_uid, gid=other.pw_gid)
    wanted = os.environ.get(SWITCH)
    allowed = (way for name, way in ways.items() if wanted in (None, "", name) and way.can("-x", Path("/")))
    return next(allowed, None)
