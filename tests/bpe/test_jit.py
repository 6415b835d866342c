"""Compiled kernels kept on disk are used again, and never stale."""

import subprocess
import sys
from pathlib import Path

import pytest

from being_vl.bpe import _jit

SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from room.caller import call
print(call(1), sum(call.stats.cache_hits.values()))
"""


@pytest.mark.skipif(not _jit.HAS_NUMBA, reason="numba is not installed")
def test_a_changed_callee_in_another_file_is_compiled_again(tmp_path):
    """numba compares the age of the caller's file alone: the machine code holds the callee's, too."""
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").touch()
    (room / "_jit.py").write_text(Path(_jit.__file__).read_text())
    (room / "caller.py").write_text(
        "from ._jit import kernel\nfrom .callee import add\n\n"
        "@kernel\ndef call(x):\n    return add(x)\n"
    )

    def run(added: int) -> list[str]:
        source = f"from ._jit import kernel\n\n@kernel\ndef add(x):\n    return x + {added}\n"
        if not (room / "callee.py").exists() or (room / "callee.py").read_text() != source:
            (room / "callee.py").write_text(source)
        script = SCRIPT.format(folder=str(tmp_path))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert run(1) == ["2", "0"]
    assert run(1) == ["2", "1"]
    assert run(20) == ["21", "0"]
