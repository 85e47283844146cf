"""``python -m pyds4.evals``."""

import sys

from pyds4.evals import main

sys.exit(main())
