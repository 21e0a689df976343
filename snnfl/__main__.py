"""``python -m snnfl``: the command ``snnfl``."""

import sys

from snnfl.commands import main

if __name__ == "__main__":
    sys.argv[0] = "snnfl"  # as which it prints, and notes itself in environment.json
    main()
