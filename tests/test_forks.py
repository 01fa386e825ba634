"""A child that is forked while another thread holds a lock of ours does not wait for that thread, which it has not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lava_middleware"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

USES = {
    # the lock that another thread holds → what a child does that takes it
    "table._lock": "table.find('POST', 'api.openai.com', '/v1/chat/completions')",
    "paths._lock": "paths.match('POST', '/v1/chat/completions')",
    "book._lock": "book.find(('openai',), 'gpt-4o-mini')",
    "snapshot._lock": "snapshot.list_of('openai')",
    "context._default_lock": "context.set_default(None)",
    "binding._lock": "binding.identify('acme')",
    "instrument._lock": "instrument.instrument(lambda: None)",
    "guards._lock": "guards.guard(lambda *_: None)",
}
FORK = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # it is about just what is tried here
from lava_middleware import context
from lava_middleware.prices.book import Book
from lava_middleware.prices.snapshot import shipped
from lava_middleware.providers import table
from lava_middleware.providers.matching import Paths
from lava_middleware.transport import guards, instrument

book, paths, binding = Book(), Paths(table.ROWS["openai"]), context.Binding(None, request_id="r")
snapshot = shipped()
held, over = threading.Event(), threading.Event()

def hold():
    with {lock}:
        held.set()
        over.wait()

threading.Thread(target=hold).start()
held.wait()
if (child := os.fork()) == 0:
    signal.alarm(5)
    {use}
    os._exit(7)
over.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("lock", USES)
def test_a_child_does_not_wait_for_a_lock_that_a_thread_of_its_parent_held(lock: str) -> None:
    """T36"""
    code = FORK.format(lock=lock, use=USES[lock])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "7", done.stderr


OTHERWISE = {
    # files with locks that nobody renews, and why none is needed
    "bodies.py": "it is never waited for",
    "ledger/connection.py": "sqlite_file.py has its connections forget theirs",
    "ledger/owners.py": "sqlite_file.py calls its after_fork()",
    "ledger/flush.py": "sqlite_file.py calls its after_fork()",
}
PROGRAMS = ("testing", "demo", "cli.py", "replay.py")


def test_every_lock_of_the_library_is_renewed_in_a_forked_child() -> None:
    """T36: in a file with a lock there is a hook, or a reason above."""
    bare = set()
    for file in SOURCE.rglob("*.py"):
        name = file.relative_to(SOURCE)
        called = {
            ast.unparse(node.func).rpartition(".")[2]
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        if called & {"Lock", "RLock", "Condition"} and not called & {"renew_in_child", "register_at_fork"}:
            bare.add(name.as_posix())
    assert {name for name in bare if not name.startswith(PROGRAMS)} == set(OTHERWISE)
