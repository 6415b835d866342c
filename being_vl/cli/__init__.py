"""The command `being-vl`: one module a command, loaded only when it runs.

Each module of this folder has `make_parser()`, which returns a `jsonargparse.ArgumentParser`, and
`main(args)`. Bad input ends with one line on standard error and exit status 2; the environment variable
BEING_VL_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import importlib
import os
import sys

COMMANDS = {
    "convert-vq": "turn a published VQ-GAN checkpoint into a folder that loads here",
