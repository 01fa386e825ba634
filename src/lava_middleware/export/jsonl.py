"""This file knows how to append usage records to a file, one JSON object a line, so that no crash loses or garbles one.

Turning the file over is left to logrotate: when the path names another file than before, that one is opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..core.record import Record
from .follower import Follower

_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_BLOCK = 65_536
_MODE = 0o640
"""Customers' ids and spending are in it: not for everybody."""


def json_lines(path: str | os.PathLike[str], *, name: str = "jsonl") -> Follower:
    """A follower that appends every usage record to this file: `Record.to_dict()` as JSON, a line each.

    A line is on the disk before the ledger is told so. After a crash the last lines may come again, with the same
    `id`. Two such followers on one ledger need two names. Raises ValueError if there is no such directory.
    """
    file = JsonLines(path)
    return Follower(name, file.append, finish=file.close)


class JsonLines:
    """The file. One writer at a time: the follower's lease sees to that."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise ValueError("the file for usage records is in a directory that does not exist")
        if self.path.is_dir():
            raise ValueError("the file for usage records is a directory")
        self._descriptor: int | None = None
        self._opened_by = 0

    def append(self, records: Sequence[Record]) -> None:
        """Write the records and flush them to disk. Raises OSError, and then none of them is in the file."""
        lines = "".join(_to_json(record.to_dict()) + "\n" for record in records).encode()
        descriptor = self._current()
        size = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, lines)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise

    def close(self) -> None:
        """Safe to repeat."""
        if self._descriptor is not None and self._opened_by == os.getpid():
            os.close(self._descriptor)
        self._descriptor = None

    def _current(self) -> int:
        """The file that the path names now, opened, with a whole last line."""
        if self._descriptor is not None and (self._opened_by != os.getpid() or self._was_turned_over()):
            self.close()
        if self._descriptor is None:
            self._descriptor = self._open()
            self._opened_by = os.getpid()
        return self._descriptor

    def _was_turned_over(self) -> bool:
        assert self._descriptor is not None
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino)

    def _open(self) -> int:
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            _cut_half_line(descriptor)
            if new:
                _sync_directory(self.path.parent)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def _cut_half_line(descriptor: int) -> None:
    """Remove what a crash left of a line: its record was not acknowledged and comes again."""
    size = end = os.fstat(descriptor).st_size
    whole = 0
    while end and not whole:
        start = max(0, end - _BLOCK)
        whole = os.pread(descriptor, end - start, start).rfind(b"\n") + 1
        whole += start if whole else 0
        end = start
    if whole != size:
        os.ftruncate(descriptor, whole)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _sync_directory(directory: Path) -> None:
    """Make the new file's name as durable as its content."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
