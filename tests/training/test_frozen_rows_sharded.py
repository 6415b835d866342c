"""Row freezing where no rank holds a whole matrix: FSDP2 on two CPU processes."""

import pytest
import torch
import torch.distributed as dist
from model_fixtures import LAYOUT, TEXT_SIZE, being_vl_model, random_ids
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training_fixtures import run_ranks

from being_vl.training.frozen_check import FrozenRowsCheck, FrozenRowsMoved

WORLD = 2


def _worker(rank: int) -> None:
    dist.init_process_group("gloo")
    for tied, which in ((False, "text"), (True, "text"), (False, "image")):
        _check(rank, tied, which)


def _check(rank: int, tied: bool, which: str) -> None:
    model = being_vl_model(tied=tied).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if not tied:  # its own unit, gathered for its own forward only
        fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if which == "text":
        model.freeze_text_embeddings()
    else:
        model.freeze_image_embeddings()
    held = model.frozen_row_parameter_names
    check = FrozenRowsCheck(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if n not in held], "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if n in held], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for step in range(4):
        ids = random_ids(2, 12, seed=WORLD * step + rank)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    check.verify()  # gathers the rows
    rows = torch.arange(LAYOUT.size)
    frozen = rows < TEXT_SIZE if which == "text" else rows >= LAYOUT.first_code_id
    for name, parameter in model.named_parameters():
        after = parameter.full_tensor().detach()
        if name in held:
            moved = (after != before[name]).any(dim=1)
            assert not moved[frozen].any(), name
            assert moved[~frozen].sum() > 10, name
        else:
            assert not torch.equal(after, before[name]), name
    first = int(rows[frozen][0])
    with torch.no_grad():
        model.get_output_embeddings().weight.to_local().add_(1)
    with pytest.raises(FrozenRowsMoved, match=rf"rows {first}, {first + 1}, "):
        check.verify()


def test_only_rows_that_may_move_move_under_fsdp2():
    run_ranks(_worker, processes=WORLD)
