"""`python -m mpips JOB.toml`: one rank of a job; see `mpips.run`."""

import sys

from mpips.run import main

sys.exit(main())
