"""One thread a process: the models are tiny, and bit-for-bit comparisons between processes need it."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for child processes

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# A file is the unit that pytest-xdist gives to a process. These take a minute and more, and come first, so that at the
# end no process waits for the other.
_LONG = (
    "test_docs.py",
    "studies/test_quickstart.py",
    "gpu/test_rehearsal.py",
    "hub/test_family_checkpoints.py",
    "hub/test_remote_code.py",
    "test_notebooks.py",
    "training/test_streamed_samples.py",
    "training/test_resume.py",
    "studies/test_drawing_studies.py",
    "bpe/test_bpe_trainer.py",
    "data/test_tokenize.py",
    "training/test_sharded_training.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(_LONG)}
    missing = [str(path) for path in ranks if not path.is_file()]
    assert not missing, f"_LONG names files that are not there: {missing}"
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
