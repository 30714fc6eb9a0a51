"""Several ranks that train together: starting alike, staying alike, and saying who they are."""

from __future__ import annotations

import os

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.system.ranks import Ranks
from jittor_lora.system.runtime import threads
from jittor_lora.tasks.run_values import progress_of, state_of
from jittor_lora.training.optimizer import AdamW
from jittor_lora.training.progress import Progress
from jittor_lora.training.trainable import Trainable


def start_alike(ranks: Ranks, progress: Progress, trainable: Trainable, optimizer: AdamW) -> Progress:
    """Give every rank the first one's parameters, initial arrays and optimiser state. Returns where the run stands."""
    if ranks.size == 1:
        return progress
    trainable.load(ranks.broadcast_arrays({name: p.numpy() for name, p in trainable.parameters().items()}))
    trainable.load_initial(ranks.broadcast_arrays(trainable.initial()))
    progress = progress_of(ranks.broadcast(state_of(progress)))
    if progress.step:
        optimizer.load_state(ranks.broadcast_arrays(optimizer.state()), progress.updates)
    return progress


def check_alike(ranks: Ranks, trainable: Trainable) -> None:
    """
    Raises:
        UserError: the ranks' parameters have drifted apart.
    """
    if ranks.size == 1:
        return
    norms = ranks.all_gather([float(np.linalg.norm(p.numpy().astype(np.float64)))
                              for p in trainable.parameters().values()])
    apart = [rank for rank, found in enumerate(norms)
             if not np.allclose(found, norms[0], rtol=1e-4, atol=1e-6, equal_nan=True)]
    if apart:
        raise UserError(f"The parameters on rank {', '.join(map(str, apart))} no longer equal those on rank 0; nothing "
                        "was saved. Check the memory of that host and its versions; --resume continues from the last "
                        "checkpoint.")


def ranks_line(ranks: Ranks) -> list[str]:
    """How many ranks there are on which host; nothing for a single process."""
    if ranks.size == 1:
        return []
    places = ranks.all_gather([os.uname().nodename, threads()])
    hosts = {host: [count for at, count in places if at == host] for host, _ in places}
    return ["Ranks: " + ", ".join(f"{len(counts)} on {host} with {'/'.join(map(str, sorted(set(counts))))} thread"
                                  f"{'' if set(counts) == {1} else 's'} each" for host, counts in hosts.items())]
