"""`python -m narrows` is the command `narrows`."""

import sys

from narrows.cli.main import main

sys.exit(main())
