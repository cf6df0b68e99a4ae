"""`python -P -m mpips.cli`: the same as `mpips`, where the script is not on the PATH."""

import sys

from mpips.cli.main import main

sys.exit(main())
