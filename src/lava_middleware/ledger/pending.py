"""This file knows how to keep what could not be posted: JSON lines, fsynced, posted when the ledger is back."""

from __future__ import annotations

import json
import logging
import os
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard

from ..core.commands import Command, Grant, Report, Settle, Void
from ..core.decide import LedgerRuleError
from ..core.record import is_of_a_call
from ..core.tiers import Tiers

_log = logging.getLogger("lava_middleware")

_COMMANDS: dict[str, type[Any]] = {"settle": Settle, "void": Void, "report": Report, "grant": Grant}
"""What may be kept. A missing one (an authorize) is refused: it is worth nothing once its caller has gone on."""
_NAMES = {made: name for name, made in _COMMANDS.items()}


AT_ONCE_S = 0.2
"""For so long kept commands are posted before whoever posts them looks after other things."""


class Pending:
    """One file beside the ledger, shared by all its processes. It holds no more than the ledger itself would.

    Beside endings it has *sent* lines: a call that left without a hold because the ledger was away, and what it owes
    if its process dies before its end. While any process has such a call open it holds `<path>.sent` locked, so nobody
    takes the line for an orphan's.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._calls: set[str] = set()
        self._calls_lock = allocate_lock()
        self._guard: int | None = None

    def __bool__(self) -> bool:
        """True if anything is kept."""
        try:
            return self.path.stat().st_size > 0
        except OSError:
            return False

    def keep(self, account: str, command: Command, record: str | None) -> None:
        """Write it down; on return it has survived a power loss. Raises OSError, and ValueError for an authorize."""
        self._write(encode_line(account, command, record))

    def sent(self, account: str, report: Report, record: str) -> None:
        """Write down that a call leaves without a hold, and what it owes if nothing more is heard of it.

        Raises OSError or ValueError: then nobody would know of the call. End it with `over`.
        """
        line = encode_line(account, report, record, sent=True)
        with self._calls_lock:
            if self._guard is None:
                self._guard = self._guarded(exclusive=False)
            self._calls.add(report.key)
        try:
            self._write(line)
        except BaseException:
            self._call_over(report.key)
            raise

    def over(self, key: str, *, owed: bool) -> None:
        """The call has ended and what it owed, if it did, is in the ledger or in this file."""
        try:
            if not owed:
                self._strike_out(key)
        finally:
            self._call_over(key)

    def tells_of(self, account: str, call: str) -> bool:
        """Whether it says that this call left without a hold, or what it owes."""
        try:
            if not self:
                return False
            with self._locked() as file:
                lines = [_read(line) for line in file.read().splitlines(keepends=True)]
            return any(
                _is_report(line, call) and line.account == account and is_of_a_call(line.record) for line in lines
            )
        except OSError as error:
            _log.error("the pending file could not be read: %s", error)
            return False

    def forget(self) -> None:
        """In a forked child: the open calls are the parent's, and so is the lock."""
        self._calls_lock = allocate_lock()
        self._calls = set()
        guard, self._guard = self._guard, None
        if guard is not None:
            os.close(guard)  # the parent's descriptor keeps the lock

    def post(self, apply: Callable[[str, Command, str | None], None]) -> Iterator[int]:
        """Hand every command that is kept now to `apply`, a moment's worth at a time; those it raises for stay.

        Yields how many went through each time. In between the file is free for whoever has something to keep. Killed
        half-way, the next run repeats what was posted: commands carry ids, so nothing is posted twice.
        """
        todo: set[bytes] | None = None
        while self and todo != set():
            try:
                with self._locked(wait=False) as file, self._orphans() as orphans:
                    if file is None:
                        return  # another process is at it
                    lines = file.read().splitlines(keepends=True)
                    todo = set(lines) if todo is None else todo.intersection(lines)
                    left = _left(lines, apply, orphans, todo)
                    if len(left) < len(lines):
                        self._put_back(file, left)
            except OSError as error:  # what was posted stays in the file; it is not posted again
                _log.error("the pending file could not be written: %s", error)
                return
            yield len(lines) - len(left)

    def _write(self, line: bytes) -> None:
        with self._locked() as file:
            size = file.seek(0, os.SEEK_END)
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # a line half written would hide the next one
                raise

    def _strike_out(self, key: str) -> None:
        with self._locked() as file:
            lines = file.read().splitlines(keepends=True)
            left = [line for line in lines if not _is_sent(_read(line), key)]
            if len(left) < len(lines):
                self._put_back(file, left)

    def _call_over(self, key: str) -> None:
        with self._calls_lock:
            self._calls.discard(key)
            if not self._calls and self._guard is not None:
                guard, self._guard = self._guard, None
                os.close(guard)

    @contextmanager
    def _orphans(self) -> Iterator[bool]:
        """True: no process has a call open that left without a hold, so what the file says of such calls is all that
        will be heard of them. As long as the block lasts none leaves."""
        try:
            guard = self._guarded(exclusive=True)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            os.close(guard)

    def _guarded(self, *, exclusive: bool) -> int:
        import fcntl  # not on Windows, where a ledger has no file

        guard = os.open(f"{self.path}.sent", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(guard, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BaseException:
            os.close(guard)
            raise
        return guard

    def _put_back(self, file: Any, lines: list[bytes]) -> None:
        """Only these lines from now on. Killed at any moment, it leaves the old lines or the new ones."""
        if not lines:
            file.truncate(0)
            os.fsync(file.fileno())
            return
        new = f"{self.path}.new"  # only who has the file locked writes it
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as fresh:
            fresh.writelines(lines)
            fresh.flush()
            os.fsync(fresh.fileno())
        os.replace(new, self.path)

    @contextmanager
    def _locked(self, *, wait: bool = True) -> Iterator[Any]:
        """The file, open and locked; None where another process has it and we would have to wait."""
        import fcntl

        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield None
                    return
                if self._is_current(file):
                    yield file
                    return

    def _is_current(self, file: Any) -> bool:
        """Whether the path still names this file: whoever had it locked may have put another in its place."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False


@dataclass(frozen=True, slots=True)
class _Line:
    account: str
    command: Command
    record: str | None
    sent: bool


def _left(
    lines: list[bytes], apply: Callable[[str, Command, str | None], None], orphans: bool, todo: set[bytes]
) -> list[bytes]:
    """Post of the lines what is to do, as long as a moment lasts, and take it off that list. Those that stay."""
    read = [_read(line) for line in lines]
    ended = {one.command.key for one in read if one and not one.sent and isinstance(one.command, Report)}
    left: list[bytes] = []
    done: set[bytes] = set()
    until = time.monotonic() + AT_ONCE_S
    for line, one in zip(lines, read, strict=True):
        if line in todo and (not done or time.monotonic() < until):
            done.add(line)
            if one is None:
                _log.error("a line of the pending file cannot be read and stays there")
            elif one.sent and isinstance(one.command, Report) and one.command.key in ended:
                continue  # how it ended stands in the file as well
            elif (orphans or not one.sent) and _posted(one, apply):
                continue
        left.append(line)
    todo -= done
    return left


def _read(line: bytes) -> _Line | None:
    try:
        return _Line(*decode_line(line), sent=bool(json.loads(line).get("sent")))
    except (ValueError, TypeError, KeyError):
        return None


def _is_report(line: _Line | None, key: str) -> TypeGuard[_Line]:
    return line is not None and isinstance(line.command, Report) and line.command.key == key


def _is_sent(line: _Line | None, key: str) -> bool:
    return line is not None and line.sent and _is_report(line, key)


def _posted(line: _Line, apply: Callable[[str, Command, str | None], None]) -> bool:
    try:
        apply(line.account, line.command, line.record)
    except Exception as error:
        if line.sent and isinstance(error, LedgerRuleError):
            return True  # its end is in the ledger, with another charge than was expected
        _log.warning("a kept %s could not be posted yet: %s", type(line.command).__name__.lower(), error)
        return False
    return True


def encode_line(account: str, command: Command, record: str | None, *, sent: bool = False) -> bytes:
    """One line of JSON that `decode_line` reads."""
    name = _NAMES.get(type(command))
    if name is None:
        raise ValueError("only endings, reports and grants can be kept for later")
    said = {field.name: value for field in fields(command) if (value := getattr(command, field.name)) is not None}
    document: dict[str, Any] = {"account": account, "command": name, "with": said, "record": record}
    if sent:
        document["sent"] = True
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=_fields)
    return text.encode(errors="replace") + b"\n"


def decode_line(line: bytes) -> tuple[str, Command, str | None]:
    """The account, the command and the record. Raises ValueError, TypeError or KeyError for anything else."""
    document = json.loads(line)
    said = {name: _frozen(value) for name, value in document["with"].items()}
    if "tiers" in said:
        said["tiers"] = Tiers(*said["tiers"])
    return document["account"], _COMMANDS[document["command"]](**said), document["record"]


def _fields(made: Any) -> list[Any]:
    return [getattr(made, field.name) for field in fields(made)]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value
