"""Compiled kernels kept on disk are used again, and never stale."""

import errno
import os
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


@pytest.mark.skipif(not _jit.HAS_NUMBA, reason="numba is not installed")
def test_a_cache_on_a_full_disk_is_one_warning(monkeypatch, caplog):
    from numba.core.caching import IndexDataCacheFile

    def save(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexDataCacheFile, "save", save)
    one, other = (_jit.kernel(function) for function in (_add_one, _add_two))
    assert (one(1), other(1)) == (2, 3)
    (warning,) = caplog.records
    assert "compiled kernels are not kept: No space left on device" in warning.message


def _add_one(x):
    return x + 1


def _add_two(x):
    return x + 2
