"""`python -m tlazy` is the command `tlazy`."""

import sys

from tlazy.cli import main

if __name__ == "__main__":
    sys.exit(main())
