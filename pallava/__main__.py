"""``python -m pallava`` is the ``pallava`` command."""

import sys

from pallava.cli import main

sys.exit(main())
