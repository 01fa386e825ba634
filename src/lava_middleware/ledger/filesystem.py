"""This file knows which file systems a SQLite ledger can live on."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

MOUNTINFO = "/proc/self/mountinfo"

_NETWORK = {
    # Locks that other hosts do not see, or shared memory that they do not share: two balances, both believed.
    # https://www.sqlite.org/wal.html ("WAL does not work over a network filesystem")
    *("nfs", "nfs3", "nfs4", "cifs", "smb2", "smb3", "smbfs", "smbfuse", "9p", "afs", "auristorfs", "ncpfs", "coda"),
    *("ceph", "glusterfs", "lustre", "beegfs", "gpfs", "orangefs", "pvfs2", "davfs", "drvfs", "vboxsf", "prl_fs"),
    *("fuse.sshfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"),
    *("fuse.goofys", "fuse.mount-s3", "fuse.blobfuse", "fuse.blobfuse2", "fuse.davfs", "fuse.juicefs", "fuse.smbnetfs"),
    *("fuse.curlftpfs", "fuse.seaweedfs", "fuse.mfs", "fuse.moosefs"),
}
_DOUBTFUL = {
    # file system → what the operator should know. Any other "fuse.*" gets the sentence of "fuse".
    "fuse": "whether locks and shared memory work there depends on the program behind it",
    "fuseblk": "whether locks and shared memory work there depends on the program behind it",
    "virtiofs": "do not open the ledger from the host or another guest at the same time",
    "overlay": "a ledger on a container's own layer is lost when the container is replaced: mount a volume for it",
    "tmpfs": "a ledger in memory is lost at the next restart of the machine",
    "ramfs": "a ledger in memory is lost at the next restart of the machine",
}


@dataclass(frozen=True, slots=True)
class Refused:
    """No ledger can be kept there."""

    message: str


@dataclass(frozen=True, slots=True)
class Doubtful:
    """It works, and the operator should know something."""

    message: str


def check(path: str, mountinfo: str) -> Refused | Doubtful | None:
    """Judge the place of a ledger by the text of /proc/self/mountinfo. `path` is absolute, without symbolic links."""
    kind = _kind_of(path, mountinfo)
    if kind in _NETWORK:
        return Refused(
            f"the ledger {path} would be on a network file system ({kind}), where SQLite's locks cannot be relied on: "
            "put it on a local disk, or use PostgreSQL for several hosts"
        )
    reason = _DOUBTFUL.get("fuse" if kind.startswith("fuse.") else kind)
    return Doubtful(f"the ledger {path} is on {kind}: {reason}") if reason else None


def read_mountinfo() -> str:
    """The text, or nothing where there is none (macOS)."""
    try:
        with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _kind_of(path: str, mountinfo: str) -> str:
    """The type of the file system that is mounted nearest above the path; of two on one place, the later one."""
    nearest, kind = "", ""
    for line in mountinfo.splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/sda rw; any number of fields before the dash.
        # https://docs.kernel.org/filesystems/proc.html#proc-pid-mountinfo-information-about-mounts
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        place = _unescaped(fields[4])
        if len(place) >= len(nearest) and _is_within(path, place):
            nearest, kind = place, after.split(" ")[0]
    return kind


def _is_within(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + os.sep)


def _unescaped(text: str) -> str:
    """The kernel writes blanks and backslashes of a path as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
