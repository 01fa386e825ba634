"""This file knows what `python -m lava_middleware` does: the same as `lava`."""

import sys

from .cli import main

sys.exit(main())
