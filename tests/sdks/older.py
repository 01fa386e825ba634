"""This file knows how to play the matrix with older releases: run it with the interpreter that has them.

    .venv-older/bin/python -m tests.sdks.older

A line of JSON for each case: [SDK, colour, scene, what went wrong or null]. The first line names the versions.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import traceback
from importlib.metadata import version

from .drivers import OLDER
from .matrix import cases, play, staged

PACKAGES = ("openai", "anthropic", "litellm")


def main() -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches its price list when it is imported
    _tell({name: version(name) for name in PACKAGES})
    for name, group in itertools.groupby(cases(OLDER), key=lambda case: case[0]):
        with contextlib.redirect_stdout(sys.stderr), staged(OLDER[name]) as stage:  # litellm prints
            for _, colour, scene in group:
                fault = None
                try:
                    play(stage, colour, scene)
                except BaseException:
                    fault = traceback.format_exc(limit=-6)
                _tell([name, colour, scene, fault])


def _tell(line: object) -> None:
    print(json.dumps(line), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
