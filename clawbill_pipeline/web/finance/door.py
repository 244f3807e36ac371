"""The door of the finance pages: who is asking, whether they may, and whether they meant it. No page is in here.

Three ways in. Accounts in the users file sign in with a password and get a session. An authenticating proxy names the
user in a header, where the settings say so. With no accounts set up, this machine alone gets in, as itself.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from itsdangerous import BadData, URLSafeTimedSerializer
from sqlalchemy import Connection, insert
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clawbill_pipeline.catalog import CatalogError
from clawbill_pipeline.clock import Clock, clock_of
from clawbill_pipeline.ledger import Ledger, LedgerError
from clawbill_pipeline.ledger.archive import ArchiveError
from clawbill_pipeline.ledger.tables import audit_trail
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.finance.render import page
from clawbill_pipeline.web.finance.users import Role, Users, UsersError, UsersFile, verified
from clawbill_pipeline.web.local import from_this_machine

log = logging.getLogger(__name__)

COOKIE = "clawbill_session"
#: Seconds that a session lasts, and the most bytes of a form.
SESSION, FORM = 12 * 3600, 65_536
#: Failed sign-ins within ``WINDOW`` seconds: of one name from one address, and of one address.
WINDOW, A_NAME, AN_ADDRESS = 900, 5, 30
#: What the person at this machine is called where no accounts are set up.
LOCAL = "this machine"


class Refused(Exception):
    """The request goes no further: an HTTP status, and what to tell the person."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Viewer:
    """Who is asking. ``tenants`` is None for all of them."""

    name: str
    role: Role
    tenants: tuple[str, ...] | None = None
    #: Whether there is a session to end.
    signed_in: bool = False

    @property
    def approves(self) -> bool:
        return self.role == "finance"

    def sees(self, tenant_id: str | None) -> bool:
        return self.tenants is None or tenant_id in self.tenants


@dataclass(frozen=True)
class Visit:
    """One request that got in. ``token`` goes into every form of the answer; ``form`` is what was posted."""

    viewer: Viewer
    token: str
    form: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request, Visit], Response]
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class _Session:
    nonce: str
    user: str | None = None
    mark: str | None = None
    is_new: bool = False


class Door:
    """Guards handlers. ``guarded`` is the only way for a page to be reached."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.ledger = ledger
        self.clock: Clock = clock_of(settings.clock)
        self._settings = settings
        self._file = UsersFile(settings.users_file, required=settings.users is not None)
        self._secure = (settings.web_url or "").startswith("https://")
        self._attempts = Attempts()
        self._ended: dict[str, float] = {}
        self._hashing = threading.BoundedSemaphore(2)  # each takes 64 MiB
        self._key: bytes | None = None

    # --- guarding ----------------------------------------------------------------------------------------------------

    def guarded(self, handler: Handler, *, role: Role | None = None, post: bool = False) -> Endpoint:
        """An endpoint that calls ``handler`` in a thread once the visitor may: ``role`` alone, or everybody let in.

        With ``post`` a form with a good token is asked for.
        """

        async def endpoint(request: Request) -> Response:
            session = self._session(request)
            try:
                form = await _form(request) if post else {}
                return await run_in_threadpool(self._enter, handler, request, session, form, role, post)
            except Refused as refusal:
                return self._refusal(refusal)
            except UsersError as error:
                log.error("finance pages: %s", error)
                return self._refusal(Refused(503, "Accounts can't be read now; see the log."))
            except ArchiveError as error:  # which says what to do
                log.error("finance pages: %s", error)
                return self._refusal(Refused(409, str(error)))
            except LedgerError as error:
                log.error("finance pages: %s", error)
                return self._refusal(Refused(503, "The database does not answer as it should; see the log."))
            except CatalogError as error:
                log.error("finance pages: %s", error)
                return self._refusal(Refused(503, "The catalogue can't be read; see the log."))

        return endpoint

    def _enter(
        self,
        handler: Handler,
        request: Request,
        session: _Session,
        form: dict[str, str],
        role: Role | None,
        post: bool,
    ) -> Response:
        given = (*request.path_params.values(), *request.query_params.values(), *form.values())
        if any("\0" in str(value) for value in given):  # PostgreSQL takes no NUL
            raise Refused(404, "There is no such page.")
        viewer = self._viewer(request, session)
        if viewer is None:
            if post:
                raise Refused(401, "Sign in first; your session is over.")
            here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/sign-in?next={quote(here, safe='')}", 303)
        if role is not None and viewer.role != role:
            raise Refused(403, f"Only the role {role} may do this; you are signed in as {viewer.role}.")
        if post:
            self._check_token(session, form)
        answer = handler(request, Visit(viewer, self._token(session), form))
        return self._keep(answer, session)

    def _viewer(self, request: Request, session: _Session) -> Viewer | None:
        """Who asks; None for somebody who is to sign in. Raises Refused, UsersError."""
        users = self._file.current()
        header = self._settings.proxy_user_header
        if header and (named := request.headers.getlist(header)):
            return self._proxied(request, users or {}, named)
        if users is None and not header:
            if from_this_machine(request):
                return Viewer(LOCAL, "finance")
            raise Refused(
                403, "These pages are open to this machine only. Set up accounts with: clawbill users add NAME --role …"
            )
        user = (users or {}).get(session.user or "")
        if user is None or session.user is None or user.mark != session.mark:
            return None
        return Viewer(session.user, user.role, user.tenants, signed_in=True)

    def _proxied(self, request: Request, users: Users, named: list[str]) -> Viewer:
        try:
            peer = ip_address(request.client.host if request.client else "")
        except ValueError:
            peer = None
        if peer is None or not any(peer in network for network in self._settings.proxy_addresses):
            log.warning("finance pages: a user's name in a header from %s, which is no proxy of ours", peer)
            raise Refused(403, "Sign-in by header is taken from the proxy only.")
        name = named[0]
        if len(named) != 1 or name not in users:
            raise Refused(403, "You are signed in, but have no account here; ask for: clawbill users add")
        return Viewer(name, users[name].role, users[name].tenants)

    def _refusal(self, refusal: Refused) -> Response:
        return page("refused.html", status=refusal.status, message=refusal.message, code=refusal.status)

    # --- sessions ----------------------------------------------------------------------------------------------------

    def _secret(self) -> bytes:
        if self._key is None:
            self._key = secret_key(self._settings.state / "web" / "session.key")
        return self._key

    def _serializer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._secret(), salt="session", signer_kwargs={"digest_method": hashlib.sha256})

    def _session(self, request: Request) -> _Session:
        """The visitor's session; a new one, of nobody, where there is none that is good."""
        try:
            kept = self._serializer().loads(request.cookies.get(COOKIE, ""), max_age=SESSION)
            if kept["n"] not in self._ended:
                return _Session(kept["n"], kept["u"], kept["m"])
        except (BadData, KeyError, TypeError):
            pass
        return _Session(secrets.token_urlsafe(24), is_new=True)

    def _keep(self, answer: Response, session: _Session) -> Response:
        if session.is_new:
            value = self._serializer().dumps({"n": session.nonce, "u": session.user, "m": session.mark})
            text = value if isinstance(value, str) else value.decode()
            answer.set_cookie(
                COOKIE, text, max_age=SESSION, httponly=True, samesite="lax", secure=self._secure, path="/"
            )
        return answer

    def _token(self, session: _Session) -> str:
        return hmac.new(self._secret(), f"form:{session.nonce}".encode(), hashlib.sha256).hexdigest()

    def _check_token(self, session: _Session, form: Mapping[str, str]) -> None:
        if session.is_new or not hmac.compare_digest(self._token(session).encode(), form.get("token", "").encode()):
            raise Refused(403, "This form is too old, or was not ours. Go back, load the page again, and repeat.")

    # --- signing in and out ------------------------------------------------------------------------------------------

    async def sign_in_page(self, request: Request) -> Response:
        """``GET /sign-in``."""
        session = self._session(request)
        return self._keep(self._sign_in_form(session, request.query_params.get("next", "/")), session)

    async def sign_in(self, request: Request) -> Response:
        """``POST /sign-in``: a new session where name and password are good."""
        session = self._session(request)
        try:
            form = await _form(request)
            self._check_token(session, form)
            return await run_in_threadpool(self._sign_in, request, session, form)
        except Refused as refusal:
            return self._refusal(refusal)
        except (UsersError, LedgerError) as error:
            log.error("finance pages: %s", error)
            return self._refusal(Refused(503, "Nobody can sign in now; see the log."))

    def _sign_in(self, request: Request, session: _Session, form: Mapping[str, str]) -> Response:
        name, password, leads_to = form.get("name", ""), form.get("password", ""), form.get("next", "/")
        address = request.client.host if request.client else ""
        if not self._attempts.allowed(address, name):
            answer = self._sign_in_form(session, leads_to, "Too many attempts. Wait a quarter of an hour.", 429)
            answer.headers["Retry-After"] = str(WINDOW)
            return answer
        with self._hashing:
            user = verified(self._file.current() or {}, name, password)
        if user is None:
            self._attempts.failed(address, name)
            log.warning("finance pages: a sign-in from %s failed", address)
            return self._sign_in_form(session, leads_to, "Name or password is wrong.", 401)
        self._attempts.forget(address, name)
        with self.ledger.transaction() as connection:
            note(connection, self.clock, "web.signed_in", name, {"by": name, "role": user.role, "address": address})
        # A new nonce: what anyone knew of the session before is worth nothing.
        fresh = _Session(secrets.token_urlsafe(24), name, user.mark, is_new=True)
        return self._keep(RedirectResponse(local_path(leads_to), 303), fresh)

    def _sign_in_form(self, session: _Session, leads_to: str, problem: str = "", status: int = 200) -> Response:
        token = self._token(session)
        return page("sign_in.html", status=status, token=token, next=local_path(leads_to), problem=problem)

    async def sign_out(self, request: Request) -> Response:
        """``POST /sign-out``: the session ends, also for whoever copied it."""
        session = self._session(request)
        try:
            self._check_token(session, await _form(request))
        except Refused as refusal:
            return self._refusal(refusal)
        now = time.time()
        self._ended = {nonce: until for nonce, until in self._ended.items() if until > now}
        self._ended[session.nonce] = now + SESSION
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(COOKIE, path="/")
        return answer


class Attempts:
    """Failed sign-ins of late, by address and by address and name. In memory: a restart forgives."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, ...], deque[float]] = {}
        self._lock = threading.Lock()

    def allowed(self, address: str, name: str) -> bool:
        """Whether one more attempt may be made now."""
        with self._lock:
            return self._count(address) < AN_ADDRESS and self._count(address, name) < A_NAME

    def failed(self, address: str, name: str) -> None:
        with self._lock:
            if len(self._failures) > 10_000:
                self._failures = {key: of for key, of in self._failures.items() if self._count(*key)}
            for key in ((address,), (address, name)):
                self._failures.setdefault(key, deque(maxlen=AN_ADDRESS)).append(time.monotonic())

    def forget(self, address: str, name: str) -> None:
        with self._lock:
            self._failures.pop((address, name), None)

    def _count(self, *key: str) -> int:
        found = self._failures.get(key, deque())
        while found and found[0] < time.monotonic() - WINDOW:
            found.popleft()
        return len(found)


def note(
    connection: Connection,
    clock: Clock,
    kind: str,
    subject: str,
    detail: Mapping[str, Any],
    tenant_id: str | None = None,
) -> None:
    """A row of the audit trail: ``detail`` says ``by`` whom."""
    row = {"at": clock(), "kind": kind, "tenant_id": tenant_id, "subject": subject, "detail": dict(detail)}
    connection.execute(insert(audit_trail).values(row))


def local_path(address: str) -> str:
    """``address`` where it is a path of this app; else the first page. A sign-in must not lead elsewhere."""
    is_ours = address.startswith("/") and not address.startswith("//")
    return address if is_ours and not any(sign in address for sign in "\\\r\n\t\0") else "/"


def secret_key(path: Path) -> bytes:
    """The key in ``path``, made there for this user's eyes on the first call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    if not path.exists():
        fresh.touch(mode=0o600)
        fresh.write_bytes(secrets.token_bytes(32))
        try:
            path.hardlink_to(fresh)  # whoever comes first wins
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return path.read_bytes()


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form. Raises Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refused(415, "Only a form can be posted here.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM:
            raise Refused(413, "The form is too large.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=False, max_num_fields=100))
    except ValueError:
        raise Refused(400, "The form can't be read.") from None
