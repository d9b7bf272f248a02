"""`python -m afdcd_hf.cli`, for launchers: `accelerate launch -m afdcd_hf.cli evaluate ...`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
