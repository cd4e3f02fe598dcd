"""Runs the command `jasgnas` as `python -m jasgnas`."""

import sys

from jasgnas.cli import main

sys.exit(main())
