"""`python -P -m mpips.cli`: the same as `mpips`, for where its script is not on the PATH."""

import sys

from mpips.cli.main import main

sys.exit(main())
