"""Every function for what is sold has an example in its docstring, and the example is true."""

from __future__ import annotations

import doctest
from collections.abc import Iterator

import pytest

from lava_middleware import Lava, run
from lava_middleware.credits import runs
from lava_middleware.credits.administration import Administration
from lava_middleware.credits.bookkeeping import Bookkeeping
from lava_middleware.credits.reading import Reading

WITHOUT = {"terms", "terms_to_follow", "first_seen"}
"""What is read, or called by the library itself."""


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=False, recurse=True)
    for owner in (Administration, Bookkeeping, Reading):
        for found in finder.find(owner, owner.__name__):
            name = found.name.partition(".")[2]
            if name and not name.startswith("_") and not (name[0] == "a" and hasattr(owner, name[1:])):
                yield found
    yield from finder.find(run, "run", module=runs)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_the_example_of_a_docstring_is_true(example: doctest.DocTest) -> None:
    if example.name.rpartition(".")[2] in WITHOUT:
        assert not example.examples
        return
    assert example.examples, "it has no example"
    with Lava("memory://", meters={"pages": {"rates": {"pages": "0.01"}}}) as lava:
        lava.instrument()
        example.globs = {"lava": lava, "Lava": Lava, "run": run}
        said: list[str] = []
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(example, out=said.append)
        assert not runner.failures, "".join(said)
