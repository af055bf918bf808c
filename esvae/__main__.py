"""`python -m esvae`, and what `torchrun -m esvae` starts."""

import sys

from .cli import main

sys.exit(main())
