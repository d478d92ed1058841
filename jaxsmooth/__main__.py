"""`python -m jaxsmooth`: the command of the same name. Nothing of the package imports this file."""

import sys

from bridges.command import main

sys.exit(main())
