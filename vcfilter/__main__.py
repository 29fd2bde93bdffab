"""python -m vcfilter"""

from __future__ import annotations

import sys

from vcfilter.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
