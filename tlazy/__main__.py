"""`python -m tlazy` is the command `tlazy`."""

import sys

try:
    from tlazy.cli import main
except KeyboardInterrupt:  # Ctrl-C while packages load
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
