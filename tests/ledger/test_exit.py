"""What a process writes in its last moments survives a power loss too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from lava_middleware import Lava
from lava_middleware.core.commands import Report
from lava_middleware.ledger import flush

flushes = []
really = flush.flush

def counted(descriptor):
    flushes.append(len(lava.ledger.journal.read(0)))
    really(descriptor)

flush.flush = counted
close = flush.Flusher.close

def told(self):
    count = len(list(lava.ledger.journal.read(0)))
    close(self)
    print(count, flushes[-1], flush=True)

flush.Flusher.close = told
lava = Lava("sqlite:///" + sys.argv[1])
lava.grant("acme", "5")
lava.ledger.journal.sync(10)

class Stream:
    def abandoned(self, how):
        lava.ledger.later(lambda: lava.ledger.apply("acme", Report("call", 1)))

lava._open[1] = Stream()
"""


def test_what_is_settled_at_the_end_of_a_script_is_flushed(tmp_path: Path) -> None:
    """T14: the flusher ends last, after the hooks that settle what a script left open."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "lava.db")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["2", "2"], done.stderr
