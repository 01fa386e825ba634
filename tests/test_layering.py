"""Imports follow the arrow of the design and never go up it; what is optional stays optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "lava_middleware"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

LOWER = ("core", "dialects", "providers", "prices", "ledger", "export")
LAYERS: dict[str, tuple[str, ...]] = {
    # part → the parts it may import beside itself. A part that is missing here is a top one: it may import every part
    # but those of PROGRAMS.
    "core": (),
    "errors": ("core",),
    "ids": (),
    "forks": (),
    "dialects": ("core",),
    "providers": ("core", "dialects", "forks"),
    "prices": ("core", "forks"),
    "ledger": ("core",),
    "export": ("core", "ledger"),
    "context": ("core", "errors", "forks", "ids"),
    "settings": ("core", "errors", "providers", "dialects", "export", "offers"),
    "offers": ("core", "prices", "providers"),
    "transport": (*LOWER, "errors", "context", "forks", "ids"),
}
PROGRAMS = ("cli", "demo", "testing", "replay", "__main__")
"""What is run, not imported: only these import one another."""
RUNS_PROGRAMS = "django/management/commands/"
"""A command of manage.py is a program too."""

RUNTIME = ("anyio", "cachetools", "httpx", "opentelemetry", "pydantic", "starlette")
"""The dependencies of design §3 (of opentelemetry only the API), and anyio, which two of them bring along."""
IF_THERE = {("ledger/ticket.py", "sniffio"), ("ledger/ticket.py", "trio"), ("transport/loops.py", "trio")}
"""(file, package): asked only when another package has brought it along, to know which event loop is running."""
COMES_WITH = {"asgiref": "django", "werkzeug": "flask"}
"""Package → the optional one that brings it along, and whose module may use it too."""
NOT_IN_CORE = {
    "asyncio",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "_thread",
    "time",
    "uuid",
}
CLOCKS = ("now", "today", "utcnow", "time", "monotonic", "perf_counter")


class Import(NamedTuple):
    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(SOURCE)}:{self.line} imports {self.module}"


def _files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def _dotted(file: Path) -> list[str]:
    parts = [PACKAGE, *file.relative_to(SOURCE).with_suffix("").parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


def _imports(file: Path) -> Iterator[Import]:
    """All imports of a file that happen when it runs, wherever they stand; the type checker's own do not count."""
    package = _dotted(file) if file.name == "__init__.py" else _dotted(file)[:-1]
    for node in _run_time_nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, node.lineno, name.name)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if node.level and not node.module:  # from . import name, from .. import name
                for name in node.names:
                    yield Import(file, node.lineno, f"{module}.{name.name}")
            else:
                yield Import(file, node.lineno, module)


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from (inner for other in node.orelse for inner in ast.walk(other))
            continue
        yield node
        yield from _run_time_nodes(node)


def _part(module: str) -> str | None:
    """Which part of the package a module belongs to: its first name below the package."""
    names = module.split(".")
    if names[0] != PACKAGE:
        return None
    return names[1] if len(names) > 1 else "__init__"


def _violations(file: Path) -> Iterator[str]:
    own = _part(".".join(_dotted(file)))
    assert own is not None
    allowed = LAYERS.get(own)
    for found in _imports(file):
        part = _part(found.module)
        if part is None or part == own:
            continue
        if allowed is not None and part not in allowed:
            yield f"{found}, but {own} may import only {', '.join(allowed) or 'itself'}"
        elif part in PROGRAMS and own not in PROGRAMS and RUNS_PROGRAMS not in file.as_posix():
            yield f"{found}, which is a program"


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_part_imports_only_what_lies_below_it(file: Path) -> None:
    assert not list(_violations(file))


@pytest.mark.parametrize("file", sorted((SOURCE / "core").glob("*.py")), ids=lambda file: file.name)
def test_the_core_has_no_clock_no_randomness_and_no_io(file: Path) -> None:
    outside = [str(found) for found in _imports(file) if found.module.split(".")[0] in NOT_IN_CORE]
    foreign = [
        str(found) for found in _imports(file) if found.module.split(".")[0] not in (*sys.stdlib_module_names, PACKAGE)
    ]
    looks_at_a_clock = [
        f"{file.name}:{node.lineno} calls {ast.unparse(node.func)}"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS)
            or (isinstance(node.func, ast.Name) and node.func.id in ("open", "input", "print"))
        )
    ]
    assert not outside + foreign + looks_at_a_clock


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_an_optional_package_is_imported_only_in_the_module_named_after_it(file: Path) -> None:
    """Programs may import more: they are run by somebody who installed it."""
    if _part(".".join(_dotted(file))) in PROGRAMS:
        return
    for found in _imports(file):
        top = found.module.split(".")[0]
        top = COMES_WITH.get(top, top)
        optional = top not in (*sys.stdlib_module_names, *RUNTIME, PACKAGE)
        named_after_it = file.stem == top or top in file.relative_to(SOURCE).parts
        if (file.relative_to(SOURCE).as_posix(), top) in IF_THERE:
            continue
        assert not optional or named_after_it, f"{found}, which is optional"
        assert not found.module.startswith("opentelemetry.sdk") or file.stem == "otel", f"{found}: only the API"


HIDE = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r} or name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
OPTIONAL = {
    "httpx2",
    "httpcore2",
    "fastapi",
    "uvicorn",
    "openai",
    "anthropic",
    "groq",
    "aiohttp",
    "requests",
    "botocore",
    "asgiref",
    "django",
    "flask",
    "werkzeug",
    "psycopg",
    "celery",
    "trio",
    "uvloop",
    "gunicorn",
}


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", HIDE.format(hidden=OPTIONAL) + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_package_imports_with_none_of_the_extras() -> None:
    done = _run("import lava_middleware; print(len(lava_middleware.__all__))")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_all_public_names_can_be_used_with_none_of_the_extras() -> None:
    done = _run("import lava_middleware as l\nfor name in l.__all__: getattr(l, name)\nl.Lava('memory://').close()")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "extra"), [("django", "Django"), ("flask", "Flask"), ("otel", "OpenTelemetry's SDK")]
)
def test_a_framework_that_is_not_installed_is_named_with_the_line_that_installs_it(module: str, extra: str) -> None:
    done = _run(f"import lava_middleware.{module}")
    assert f"lava_middleware.{module} needs {extra}: pip install 'lava-middleware[{module}]'" in done.stderr
