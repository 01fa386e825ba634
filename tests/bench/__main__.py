"""What lava_middleware costs: a table, each line beside its aim, and the same as bench.json.

    make bench                  everything (a few minutes)
    python tests/bench NAME     only the lines whose name contains NAME

Calls are paired: bare, with us, bare, with us, ... against the same stand-in over real sockets, the median of the
differences is quoted. Machines are shared and noisy: compare figures of one run only.
"""

from __future__ import annotations

import json
import pathlib
import platform
import sqlite3
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.bench import calls, dialects, footprint, ledger, postgres, requests
from tests.bench.lines import Line

SUITES = (calls.lines, dialects.lines, requests.lines, ledger.lines, postgres.lines, footprint.lines)


def main(wanted: list[str]) -> int:
    began = time.perf_counter()
    results: list[Line] = []
    print(f"{'what':<66}{'measured':>16}   aim")
    for suite in SUITES:
        for line in suite(lambda name: not wanted or any(one in name for one in wanted)):
            results.append(line)
            print(f"{line.what:<66}{line.shown:>16}   {line.aim}", flush=True)
    document = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": platform.machine(),
        "seconds": round(time.perf_counter() - began, 1),
        "lines": [line.to_dict() for line in results],
    }
    pathlib.Path("bench.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to bench.json in {document['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
