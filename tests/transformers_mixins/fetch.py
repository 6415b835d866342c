"""Fetch transformers' own test mixins, at the installed version: the one step of the tests that uses the network.

    python tests/transformers_mixins/fetch.py

The mixins ship in `tests/` of the source distribution on PyPI and in no wheel. pip fetches it once into a cache
folder ($BEING_VL_TEST_CACHE, by default ~/.cache/being_vl). `.ci/run` calls this before pytest; where it was
not called, the tests that need the mixins are skipped.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from mixin_distribution import folder_of_tests
from transformers import __version__

from being_vl.files import new_folder


def fetch() -> Path:
    """The folder of the mixins, fetched if it is not there.

    Raises:
        SystemExit: pip could not fetch the distribution; its message is shown.
    """
    folder = folder_of_tests()
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        requirement = f"transformers=={__version__}"
        command = [sys.executable, "-m", "pip", "download", requirement, "--dest", temporary]
        command += ["--no-deps", "--no-binary", "transformers", "--no-build-isolation"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(temporary).glob("transformers-*.tar.gz"))
        if done.returncode or len(archives) != 1:
            sys.exit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        with new_folder(folder) as aside, tarfile.open(archives[0]) as tar:
            for member in tar:
                parts = Path(member.name).parts
                if len(parts) == 3 and parts[1] == "tests" and member.isfile():
                    (aside / parts[2]).write_bytes(tar.extractfile(member).read())
    return folder


if __name__ == "__main__":
    print(fetch())
