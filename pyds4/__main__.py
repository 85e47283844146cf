"""``python -m pyds4`` is the ``pyds4`` command."""

import sys

from pyds4.cli import main

sys.exit(main())
