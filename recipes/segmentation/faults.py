"""Faults of a training that its user can mend: lack of GPU memory, and loader workers that died."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.module import SegmentationModule

__all__ = ["LoaderFaults", "memory_advice"]

KILLED = -9  # exit code of a process that SIGKILL ended
ENDING_SECONDS = 5.0  # for a worker to end whose connection is gone already
IN_WORKER = re.compile(r"Caught UserError in DataLoader worker.*UserError: ", re.DOTALL)


class LoaderFaults(Callback):
    """Says in one line why a loader's worker processes failed, and ends those that are left.

    Lightning lets go of the workers before an error gets out of it, so what became of them is noted before that.

    Args:
        loader: with persistent workers, if any.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.workers: Sequence[BaseProcess] = ()
        self.codes: Sequence[int | None] = ()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Notes the workers' exit codes."""
        if _of_loader(exception):
            self.workers = getattr(getattr(self.loader, "_iterator", None), "_workers", ())
            self.codes = _exit_codes(self.workers)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Around the training.

        Raises:
            UserError: a worker died, hangs, or met bad data.
        """
        try:
            yield
        except UserError as error:
            raise UserError(IN_WORKER.sub("", str(error)).strip()) from error
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A worker that dies while it hands a batch over resets the connection, which others may do too.
            if not _of_loader(error) or not (isinstance(error, RuntimeError) or any(self.codes)):
                raise
            for worker in self.workers:
                worker.kill()  # torch has asked them already, which a hanging one does not hear
            raise UserError(
                f"data.num_workers: {self.loader.num_workers}: {' '.join(str(error).split())} ({self._why(error)}); "
                "continue with the same command and --resume"
            ) from error

    def _why(self, error: Exception) -> str:
        if "timed out" in str(error):
            return "no batch came in time: a worker hangs, or the data come too slowly; cache them"
        # torch names the signal only if its handler saw the worker end before the queue was found empty.
        if "Killed" in str(error) + str(error.__cause__ or "") or KILLED in self.codes:
            return "a worker was killed, most often for lack of main memory; give fewer data.num_workers"
        return "a worker ended by itself; data.num_workers=0 shows its error"


def _of_loader(error: BaseException) -> bool:
    """Whether workers may have raised it by ending."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader")
    return isinstance(error, (ConnectionError, EOFError))


def _exit_codes(workers: Sequence[BaseProcess]) -> list[int | None]:
    """Of those that have ended; one that is just ending gets the time for it."""
    ended = wait([worker.sentinel for worker in workers], timeout=ENDING_SECONDS) if workers else []
    for worker in workers:
        if worker.sentinel in ended:
            worker.join()  # its files are closed before it can be waited for: exitcode alone may still say None
    return [worker.exitcode for worker in workers]


def memory_advice(module: SegmentationModule, trainer: Trainer, batch: Sequence[int]) -> str:
    """What to do after a step of `batch` (B, C, *patch) did not fit on the device: tries what does.

    Half batches are tried first, then half patches of one; each by a forward and backward pass on zeros, beside as much
    memory as the optimiser keeps.
    """
    device = trainer.strategy.root_device
    module.forget_batch()
    gc.collect()
    torch.cuda.empty_cache()
    module.to(device)
    trainer.optimizers.clear()
    kept = [torch.zeros_like(p) for p in module.network.parameters() for _ in range(2 if _adam(module) else 1)]
    fits = next((shape for shape in _smaller(batch, module.patch_size) if _passes(module, trainer, shape)), None)
    del kept
    module.to("cpu")
    patch = "x".join(str(n) for n in batch[2:])
    if fits is None:
        return f"nothing smaller than trainer.batch_size {batch[0]} and patch_size {patch} fits either"
    smaller = "x".join(str(n) for n in fits[2:])
    return f"measured to fit: trainer.batch_size={fits[0]} with patch_size {smaller} (now {batch[0]} with {patch})" + (
        "; or set trainer.auto_halve=true, which keeps the batch" if batch[0] > 1 and fits[2:] == batch[2:] else ""
    )


def _adam(module: SegmentationModule) -> bool:
    return module.config.optimizer == "adamw"


def _smaller(batch: Sequence[int], patch: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Half batches down to 1, then patches with their longest axis halved while it stays even and above 8."""
    size = batch[0] // 2
    while size:
        yield (size, *batch[1:])
        size //= 2
    axes = list(patch)
    while max(axes) >= 16 and max(axes) % 2 == 0:
        axes[axes.index(max(axes))] //= 2
        yield (1, batch[1], *axes)


def _passes(module: SegmentationModule, trainer: Trainer, shape: Sequence[int]) -> bool:
    """Whether a step on zeros runs."""
    try:
        image = torch.zeros(*shape, device=module.device)
        label = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.int64, device=module.device)
        with trainer.precision_plugin.forward_context():
            outputs: Tensor | list[Tensor] = module.network(image)
            loss = module.loss(outputs, label)
        loss.backward()
    except (torch.OutOfMemoryError, ValueError, RuntimeError):
        # Other errors mean that the network does not take patches of this size.
        return False
    finally:
        module.network.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True
