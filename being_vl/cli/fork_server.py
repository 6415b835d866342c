"""Imported by the fork server that starts workers (the default of Python 3.14) before its first worker.

The workers inherit what is done here.
"""

import signal

signal.signal(
    signal.SIGINT, signal.SIG_IGN
)  # a terminal sends Ctrl-C to them, too; the command ends them

from ..data.quantizing import decoding  # noqa: E402, F401  with torch: once, not once in each worker
