"""This file knows how to run the demo as `python -m lava_middleware.demo`."""

from . import main

raise SystemExit(main())
