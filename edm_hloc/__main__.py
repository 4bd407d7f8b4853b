"""`python -m edm_hloc` is the command `edm-hloc`."""

import sys

from edm_hloc.cli import main

sys.exit(main())
