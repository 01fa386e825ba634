"""What a process had reserved when it died counts as it was reserved: in every limit, and in the tiers of its meter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lava_middleware import Amount, Lava

from .kit import adds_up, settled

METERS: dict[str, Any] = {"storage": {"unit": "gigabytes", "tiers": [[0, "0.10"], [100, "0.05"]]}}
RESERVING = """
import os, sys
from lava_middleware import Lava
from tests.credits.test_reserved_by_the_dead import METERS
lava = Lava(sys.argv[1], meters=METERS)
usage = {"input": 700, "cache_read": 50, "output": 200}
lava.reserve("acme", charge="1", usage=usage, units={"characters": 90}, request_id="job").__enter__()
lava.reserve("acme", meter="storage", quantity=95, request_id="disk").__enter__()
os._exit(9)
"""


def test_a_reservation_of_a_dead_process_counts_in_the_limits(tmp_path: Path) -> None:
    """T9."""
    url = f"sqlite:///{tmp_path}/lava.db"
    with Lava(url, meters=METERS) as lava:
        lava.grant("acme", "20")
        limits = {"tokens": 950, "input_tokens": 750, "output_tokens": 200, "characters": 90, "gigabytes": 95}
        for unit in limits:
            lava.limit("acme", 10_000, unit)
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        assert subprocess.run([sys.executable, "-c", RESERVING, url], env=environment, check=False).returncode == 9
        lava.ledger.recover()
        settled(lava)
        used = {limit.name.partition("/")[0]: limit.used for limit in lava.balance("acme").limits}
        assert used == limits
        records = {record.id: record for record in lava.records("acme")}
        assert {record.kind for record in records.values()} == {"expired"}
        assert dict(records["job"].usage) == {"input": 700, "cache_read": 50, "output": 200}
        assert records["job"].facts["units"] == {"characters": 90}
        assert "metered" not in records["disk"].facts
        report = lava.report("acme", meter="storage", quantity=10, request_id="more")
        assert report is not None
        assert report.charge == Amount.of("0.75"), "five in the first tier, five in the next"
        adds_up(lava)
