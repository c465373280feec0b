"""`python -m ssmvision`: the same as the `ssmvision` command."""

from __future__ import annotations

import sys

from ssmvision.cli import main

if __name__ == "__main__":
    sys.exit(main())
