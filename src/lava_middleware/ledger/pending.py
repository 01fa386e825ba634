"""This file knows how to keep what could not be posted: JSON lines, fsynced, posted when the ledger is back."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core.commands import Command, Grant, Report, Settle, Void

_log = logging.getLogger("lava_middleware")

_COMMANDS: dict[str, type[Any]] = {"settle": Settle, "void": Void, "report": Report, "grant": Grant}
"""What may be kept. A missing one (an authorize) is refused: it is worth nothing once its caller has gone on."""
_NAMES = {made: name for name, made in _COMMANDS.items()}


class Pending:
    """One file beside the ledger, shared by all its processes. It holds no more than the ledger itself would."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __bool__(self) -> bool:
        """True if anything is kept."""
        try:
            return self.path.stat().st_size > 0
        except OSError:
            return False

    def keep(self, account: str, command: Command, record: str | None) -> None:
        """Write it down; on return it has survived a power loss. Raises OSError, and ValueError for an authorize."""
        line = encode_line(account, command, record)
        with self._locked() as file:
            size = file.seek(0, os.SEEK_END)
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # a line half written would hide the next one
                raise

    def post(self, apply: Callable[[str, Command, str | None], None]) -> int:
        """Hand every kept command to `apply`; those it raises for stay. Returns how many went through.

        Killed half-way, the next run repeats what was posted: commands carry ids, so nothing is posted twice.
        """
        if not self:
            return 0
        with self._locked(wait=False) as file:
            if file is None:
                return 0  # another process is at it
            lines = file.read().splitlines(keepends=True)
            left = [line for line in lines if not _posted(line, apply)]
            if len(left) < len(lines):
                self._put_back(file, left)
            return len(lines) - len(left)

    def _put_back(self, file: Any, lines: list[bytes]) -> None:
        file.seek(0)
        file.truncate()
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())

    @contextmanager
    def _locked(self, *, wait: bool = True) -> Iterator[Any]:
        """The file, open and locked; None where another process has it and we would have to wait."""
        import fcntl  # not on Windows, where a ledger has no file

        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file


def _posted(line: bytes, apply: Callable[[str, Command, str | None], None]) -> bool:
    try:
        account, command, record = decode_line(line)
    except (ValueError, TypeError, KeyError):
        _log.error("a line of the pending file cannot be read and stays there")
        return False
    try:
        apply(account, command, record)
    except Exception as error:
        _log.warning("a kept %s could not be posted yet: %s", type(command).__name__.lower(), error)
        return False
    return True


def encode_line(account: str, command: Command, record: str | None) -> bytes:
    """One line of JSON that `decode_line` reads."""
    name = _NAMES.get(type(command))
    if name is None:
        raise ValueError("only endings, reports and grants can be kept for later")
    said = {field.name: value for field in fields(command) if (value := getattr(command, field.name)) is not None}
    document = {"account": account, "command": name, "with": said, "record": record}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> tuple[str, Command, str | None]:
    """The account, the command and the record. Raises ValueError, TypeError or KeyError for anything else."""
    document = json.loads(line)
    said = document["with"]
    if "scopes" in said:
        said["scopes"] = tuple((name, value) for name, value in said["scopes"])
    return document["account"], _COMMANDS[document["command"]](**said), document["record"]
