"""`python -m drivestack`: the same as the command `drivestack`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
