"""`python -m jaxformer` is the command `jaxformer`."""

import sys

from jaxformer.cli import main

sys.exit(main())
