"""The codec as a process for programs without Python (docs/reference/worker.md).

Linux only: frames lie in memory of memfd_create, and SO_PEERCRED identifies the user of a
connection. The rest of the package does not import this one.
"""

import sys

from vcfilter.errors import ConfigError

if sys.platform != "linux":
    raise ConfigError(f"the worker needs Linux, this is {sys.platform}: use the Python interface")
