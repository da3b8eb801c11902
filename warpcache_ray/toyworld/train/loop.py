"""The training loop that all stages share: warm-up, decay towards a time limit, averaging and checkpoints."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

EMA_DECAY = 0.999
CHECKPOINT_S = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    out: Path
    max_minutes: float
    device: str
    batch: int
    clips: int
    seed: int
    start_from: Path | None = None


class Average(nn.Module):
    """Exponential moving average of a model's parameters (bias-corrected start)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.shadow = {k: p.detach().clone() for k, p in model.named_parameters()}

    def update(self, model: nn.Module, step: int) -> None:
        """Moves towards the model's parameters after optimiser step `step`."""
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, p in model.named_parameters():
                self.shadow[k].lerp_(p, 1 - decay)


class FlatMuon(torch.optim.Muon):
    """Muon over the parameters as matrices: the kernel of a convolution has a row for each output channel."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.parameters = parameters
        self.matrices = [nn.Parameter(_as_matrix(p.data, p)) for p in parameters]
        super().__init__(self.matrices, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        """Updates the parameters, whose storage the matrices share."""
        for parameter, matrix in zip(self.parameters, self.matrices, strict=True):
            grad = parameter.grad
            matrix.grad = None if grad is None else _as_matrix(grad, parameter)
        return super().step(closure)  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of parameters and matrices."""
        for parameter in (*self.parameters, *self.matrices):
            parameter.grad = None


def _as_matrix(x: Tensor, parameter: Tensor) -> Tensor:
    """`x` with its axes in the order of the parameter's storage (contiguous or channels-last), which the
    parameter's own matrix therefore shares."""
    return (x if parameter.is_contiguous() else x.movedim(1, -1)).flatten(1)


def optimizers(
    model: nn.Module, muon_lr: float, adam_lr: float, by_muon: str = r"\.blocks\."
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and kernels of the layers whose names match `by_muon`, AdamW for all else."""
    learning = {k: p for k, p in model.named_parameters() if p.requires_grad}
    matrices = [p for k, p in learning.items() if p.ndim >= 2 and re.search(by_muon, k)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in learning.values() if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, adam_lr, (0.9, 0.98), weight_decay=0.0)
    ]
    if matrices:
        found.append(FlatMuon(matrices, muon_lr))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


def run(
    name: str,
    options: Options,
    model: nn.Module,
    opts: list[torch.optim.Optimizer],
    loss_of: Callable[[int, random.Random], tuple[Tensor, dict[str, float]]],
) -> Average:
    """The training loop of one stage: warm-up, constant rate, linear decay over the last third of the time.

    Under `torch.distributed` each process has scenes of its own, and all make the same steps.
    """
    path = options.out / f"{name}.pt"
    average, start, spent = Average(model), 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location=options.device)
        model.load_state_dict(saved["model"])
        average.shadow, start, spent = saved["average"], saved["step"], saved["spent"]
        for optimizer, state in zip(opts, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(options.seed + 7919 * (start + 1) + rank)
    began = last = time.monotonic()
    shown: dict[str, float] = {}
    bar = tqdm(
        total=round(options.max_minutes, 1), initial=round(spent / 60, 1), desc=name, unit="min"
    )
    step = start
    while (minutes := _agree((spent + time.monotonic() - began) / 60)) < options.max_minutes:
        _set_rate(opts, step, minutes / options.max_minutes)
        loss, parts = loss_of(step, random.Random((options.seed + rank) * 1_000_003 + step))
        torch.autograd.backward(loss)
        _share_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        average.update(model, step)
        shown = {k: shown.get(k, v) * 0.98 + v * 0.02 for k, v in parts.items()}
        bar.set_postfix({"step": step} | {k: f"{v:.4f}" for k, v in shown.items()})
        bar.update(round(minutes - bar.n, 2))
        if rank == 0 and time.monotonic() - last > CHECKPOINT_S:
            last = time.monotonic()
            _checkpoint(path, model, average, opts, step, minutes * 60)
    if rank == 0:
        _checkpoint(path, model, average, opts, step, options.max_minutes * 60)
    bar.close()
    return average


def _agree(value: float) -> float:
    """The mean of a number over all training processes."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(shared)
    return shared.item() / dist.get_world_size()


def _share_gradients(model: nn.Module) -> None:
    """Gives all training processes the mean of their gradients."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    parts = torch.split(flat, [g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def _set_rate(opts: list[torch.optim.Optimizer], step: int, progress: float) -> None:
    factor = min(1.0, (step + 1) / 100, max(0.0, (1 - progress) / 0.35))
    for optimizer in opts:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _checkpoint(
    path: Path,
    model: nn.Module,
    average: Average,
    opts: list[torch.optim.Optimizer],
    step: int,
    spent: float,
) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.shadow,
        "optimizers": [o.state_dict() for o in opts],
        "step": step,
        "spent": spent,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)
