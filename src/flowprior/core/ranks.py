"""What the ranks of a launch share: their part of what was drawn for all, and the rows of all."""

import torch
from torch import Tensor, distributed


def num_ranks() -> int:
    """Ranks of the launch; 1 without one."""
    return distributed.get_world_size() if _launched() else 1


def rank_share(batch: Tensor, dim: int = 0) -> Tensor:
    """This rank's equal part of something drawn for the global batch.

    Raises:
        ValueError: It cannot be split evenly.
    """
    ranks = num_ranks()
    if batch.shape[dim] % ranks:
        raise ValueError(
            f"a batch of {batch.shape[dim]} cannot be split over {ranks} ranks; change the batch or the launch"
        )
    return batch.chunk(ranks, dim)[distributed.get_rank()] if ranks > 1 else batch


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the ranks' order, with a gradient to this rank's own.

    The gradient is multiplied by the number of ranks, so that the mean over ranks that data
    parallelism takes is the gradient of a loss of all rows.

    Args:
        rows: [n, ...], the same n on every rank.
    """
    ranks = num_ranks()
    if ranks == 1:
        return rows
    mine = rows.detach().contiguous()
    everyone = [torch.empty_like(mine) for _ in range(ranks)]
    distributed.all_gather(everyone, mine)
    everyone[distributed.get_rank()] = rows * ranks - rows.detach() * (ranks - 1)
    return torch.cat(everyone)


def check_equal_rows(rows: Tensor) -> None:
    """Whether all ranks have as many rows; else they would wait for one another, or gather garbage.

    Raises:
        ValueError: They have not; on every rank.
    """
    ranks = num_ranks()
    if ranks == 1:
        return
    mine = torch.tensor([len(rows)], device=rows.device)
    everyone = [torch.empty_like(mine) for _ in range(ranks)]
    distributed.all_gather(everyone, mine)
    counts = [int(count) for count in everyone]
    if len(set(counts)) > 1:
        raise ValueError(
            f"ranks have {counts} images in their batches; let them have equally many, for instance by drop_last"
        )


def mean_over_ranks(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over ranks, in place."""
    ranks = num_ranks()
    if ranks > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= ranks


def _launched() -> bool:
    return distributed.is_available() and distributed.is_initialized()
