"""`clawbill users`: who may sign in to the finance pages. Writes the users file; the web app reads it by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from clawbill_pipeline.commands.shared import settings_for, state_option, table
from clawbill_pipeline.web.finance.users import (
    ROLES,
    Role,
    User,
    UsersFile,
    check_name,
    hashed,
    write_users,
)


@click.group()
def users() -> None:
    """Accounts for the finance pages: a file of names, roles and argon2 hashes (CLAWBILL_USERS)."""


@users.command()
@state_option
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="finance approves; the others only look.")
@click.option("--tenant", "tenants", multiple=True, help="Sees only this tenant; may be given several times.")
@click.option("--no-password", is_flag=True, help="Comes through the authenticating proxy only.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking.")
def add(
    state: Path | None, name: str, role: Role, tenants: tuple[str, ...], no_password: bool, password_stdin: bool
) -> None:
    """Add a user, or give one a new role and password. Their open sessions end with the old password."""
    path = settings_for(state).users_file
    known = dict(UsersFile(path, required=False).current() or {})
    check_name(name)
    password = None
    if password_stdin:
        password = hashed(sys.stdin.readline().rstrip("\r\n"))
    elif not no_password:
        password = hashed(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    is_new = name not in known
    known[name] = User(role=role, password=password, tenants=tenants or None)
    write_users(path, known)
    click.echo(f"{'Added' if is_new else 'Changed'} {name} ({role}) in {path}.")


@users.command("list")
@state_option
def list_users(state: Path | None) -> None:
    """Who may sign in."""
    path = settings_for(state).users_file
    known = UsersFile(path, required=False).current()
    if not known:
        click.echo(f"{path} names nobody: the pages are open to this machine alone." if known is None else "Nobody.")
        return
    rows = [
        (name, user.role, ", ".join(user.tenants) if user.tenants else "all", "yes" if user.password else "proxy only")
        for name, user in sorted(known.items())
    ]
    click.echo(table(("name", "role", "tenants", "password"), rows))


@users.command()
@state_option
@click.argument("name")
def remove(state: Path | None, name: str) -> None:
    """Take a user's access away; open sessions end at once."""
    path = settings_for(state).users_file
    known = dict(UsersFile(path, required=False).current() or {})
    if known.pop(name, None) is None:
        raise click.ClickException(f"{path} has no user {name!r}; see: clawbill users list")
    write_users(path, known)
    click.echo(f"Removed {name} from {path}.")
