"""Owns `python -m dgmn2cli`."""

import sys

from dgmn2cli.cli import main

sys.exit(main())
