"""Processes of one run, which wait for each other before they read what another has written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def wait_for_everyone(state: PartialState) -> None:
    """accelerate's barrier, which on a CPU asks for the GPU of the rank's number where the machine has any.

    Args:
        state: of this process; those without others do not wait.
    """
    import torch.distributed

    if state.device.type == "cpu" and torch.distributed.is_initialized():
        torch.distributed.barrier()
    else:
        state.wait_for_everyone()
