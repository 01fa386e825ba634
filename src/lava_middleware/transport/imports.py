"""This file knows how to act on a module when it is imported: now, later, or never."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeAlias

Action: TypeAlias = Callable[[Any], None]
"""Must be harmless when repeated. What it raises is raised by the import."""

_waiting: dict[str, list[Action]] = {}


def when_imported(name: str, action: Action) -> None:
    """Run `action(module)` now if the module is imported, else right after its import. Imports nothing itself."""
    if name in sys.modules:
        # Another thread may be in the middle of importing it: this waits for its end.
        action(importlib.import_module(name))
        return
    actions = _waiting.setdefault(name, [])
    if action not in actions:
        actions.append(action)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def forget(name: str, action: Action) -> None:
    """Do not run it after all. Safe to repeat."""
    actions = _waiting.get(name, [])
    if action in actions:
        actions.remove(action)
    if not any(_waiting.values()) and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder(MetaPathFinder):
    """Finds what the finders after it find, and has the loader tell when it is done."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _waiting.get(fullname):
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    """A loader that takes itself away and runs the actions when the module is there."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        for action in list(_waiting.get(module.__name__, ())):
            action(module)
            forget(module.__name__, action)


_finder = _Finder()
