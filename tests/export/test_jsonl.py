"""A file of usage records has whole lines, each durable before the ledger hears of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lava_middleware.core.events import Reported
from lava_middleware.core.record import Facts, Record, record_of
from lava_middleware.export.jsonl import JsonLines, json_lines


def made(name: str) -> Record:
    facts = Facts(id=name, model="gpt-4o", provider="openai", basis="reported", usage={"input": 3}, cost=4)
    record = record_of(Reported(key=name, charge=5), facts.to_json(), customer="ácme", at=7, seq=1, balance_after=-5)
    assert record is not None
    return record


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_is_the_record_with_money_as_decimal_strings(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "usage.jsonl")
    file.append([made("a"), made("b")])
    file.close()
    lines = (tmp_path / "usage.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [made("a").to_dict(), made("b").to_dict()]
    assert json.loads(lines[0])["charge"] == "0.0000000005"
    assert "ácme" in lines[0]


@pytest.mark.parametrize("half", [b"{", b'{"id":"lost', b'{"id":"' + b"x" * 200_000])
@pytest.mark.parametrize("before", [b"", b'{"id":"old"}\n', b'{"id":"' + b"y" * 100_000 + b'"}\n'])
def test_half_a_line_left_by_a_crash_is_cut_off(tmp_path: Path, before: bytes, half: bytes) -> None:
    """Its record was not acknowledged and comes again; a reader never sees the half."""
    path = tmp_path / "usage.jsonl"
    path.write_bytes(before + half)
    file = JsonLines(path)
    file.append([made("a")])
    file.close()
    assert ids(path) == [*([json.loads(before)["id"]] if before else []), "a"]


def test_a_file_that_was_turned_over_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    file = JsonLines(path)
    file.append([made("a")])
    path.rename(tmp_path / "usage.jsonl.1")
    file.append([made("b")])
    path.unlink()
    file.append([made("c")])
    file.close()
    assert ids(tmp_path / "usage.jsonl.1") == ["a"]
    assert ids(path) == ["c"]


def test_each_batch_is_flushed_before_it_counts_as_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), real(descriptor))[1])
    file = JsonLines(tmp_path / "usage.jsonl")
    file.append([made("a")])
    assert len(flushed) == 2, "the directory, for the new name, and the file"
    file.append([made("b")])
    assert len(flushed) == 3
    file.close()


def test_a_full_disk_leaves_no_half_batch_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "usage.jsonl"
    file = JsonLines(path)
    file.append([made("a")])
    real = os.write
    full = iter([False, True])

    def write(descriptor: int, data: bytes) -> int:
        if next(full, True):
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:10])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        file.append([made("b")])
    monkeypatch.setattr(os, "write", real)
    assert ids(path) == ["a"]
    file.append([made("b")])
    assert ids(path) == ["a", "b"]
    file.close()


def test_the_file_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    file = JsonLines(path)
    file.append([made("a")])
    file.close()
    assert not path.stat().st_mode & 0o007


def test_a_path_that_cannot_work_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directory"):
        json_lines(tmp_path / "nowhere" / "usage.jsonl")
    with pytest.raises(ValueError, match="directory"):
        json_lines(tmp_path)
