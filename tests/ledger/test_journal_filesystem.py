"""Where a SQLite ledger may live, judged by the text of /proc/self/mountinfo (T28)."""

from __future__ import annotations

import pytest

from lava_middleware.ledger.filesystem import Doubtful, Refused, check

ROOT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"


def mounted(kind: str, place: str = "/srv/data") -> str:
    return ROOT + f"36 27 0:52 / {place} rw,relatime shared:1 master:2 - {kind} server:/export rw,vers=4.2\n"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.s3fs", "ceph"])
def test_a_network_file_system_is_refused_with_the_way_out(kind: str) -> None:
    verdict = check("/srv/data/lava.db", mounted(kind))
    assert isinstance(verdict, Refused)
    assert kind in verdict.message
    assert "PostgreSQL" in verdict.message


@pytest.mark.parametrize("kind", ["fuse", "fuse.bindfs", "fuseblk", "virtiofs", "overlay", "tmpfs"])
def test_a_doubtful_file_system_is_allowed_with_a_warning(kind: str) -> None:
    assert isinstance(check("/srv/data/lava.db", mounted(kind)), Doubtful)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs", "apfs"])
def test_a_local_disk_is_fine(kind: str) -> None:
    assert check("/srv/data/lava.db", mounted(kind)) is None


def test_only_the_nearest_mount_counts() -> None:
    below = mounted("nfs4") + "37 36 254:1 / /srv/data/local rw - xfs /dev/vdb rw\n"
    assert isinstance(check("/srv/data/lava.db", below), Refused)
    assert check("/srv/data/local/lava.db", below) is None
    assert check("/srv/database/lava.db", below) is None
    assert check("/lava.db", below) is None


def test_of_two_mounts_on_one_place_the_later_one_counts() -> None:
    assert isinstance(check("/srv/data/lava.db", mounted("ext4") + mounted("nfs")), Refused)
    assert check("/srv/data/lava.db", mounted("nfs") + mounted("ext4").removeprefix(ROOT)) is None


def test_blanks_in_a_mount_point_are_read_as_the_kernel_writes_them() -> None:
    text = mounted("nfs4", r"/srv/my\040data\134x")
    assert isinstance(check("/srv/my data\\x/lava.db", text), Refused)


@pytest.mark.parametrize("text", ["", "\n", "garbage", "1 2 3 - ext4", "36 27 0:52 / /srv rw"])
def test_text_that_says_nothing_refuses_nothing(text: str) -> None:
    assert check("/srv/lava.db", text) is None
