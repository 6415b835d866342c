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
    "convert": "turn the authors' released vocabulary into a table that can be read safely",
    "encode": "quantize images into parquet shards of codes",
    "export": "write a checkpoint as a plain Llama, for engines that know no other",
    "init": "extend a text model by an image vocabulary: a checkpoint to train",
