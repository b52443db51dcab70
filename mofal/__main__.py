"""`python -m mofal`."""

import sys

from mofal.cli import main

sys.exit(main())
