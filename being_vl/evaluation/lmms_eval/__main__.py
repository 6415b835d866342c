"""Prints the folder for lmms-eval's `--include_path`."""

from . import TASKS_FOLDER

print(TASKS_FOLDER)
