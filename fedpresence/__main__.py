"""`python -m fedpresence`: the same as the command `fedpresence`."""

import sys

from fedpresence.ops.cli import main

if __name__ == "__main__":
    sys.exit(main())
