"""One of the processes of test_group.py:  torchrun --nproc-per-node 2 tests/agents/training/group_worker.py FOLDER"""

import sys
from pathlib import Path

import torch
from torch import nn

from llm_mdp_agents.training.parallel import Replicated


def main() -> None:
    parallel = Replicated("cpu")
    trained, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    for model in (trained, frozen):
        for each in model.parameters():
            nn.init.constant_(each, parallel.rank + 1.0)
    parallel.same([trained, frozen])
    try:
        Replicated("cuda:5")
        refused = None
    except ValueError as error:
        refused = str(error)
    group = torch.distributed.group.WORLD
    assert group is not None
    found = {
        "trained": torch.cat([each.detach().flatten() for each in trained.parameters()]),
        "frozen": frozen.weight.detach(),
        "refused": refused,
        "patience": group._get_backend(torch.device("cpu")).options._timeout.total_seconds(),
    }
    torch.save(found, Path(sys.argv[1]) / f"{parallel.rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
