"""One thread a process: the models are tiny, and bit-for-bit comparisons between processes need it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for child processes

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
