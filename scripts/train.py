"""`afdcd train` as a script, for `accelerate launch` and `torchrun`; takes the same arguments."""

import sys

from afdcd_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
