"""Imported by the fork server that starts workers (the default of Python 3.14) before its first worker.

The workers inherit what is done here.
"""

import signal

# A terminal sends Ctrl-C to the workers too; the command ends them.
signal.signal(signal.SIGINT, signal.SIG_IGN)

from ..data.quantizing import decoding  # noqa: E402, F401  with torch: once, not once in each worker
