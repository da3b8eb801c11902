from __future__ import annotations

import pytest
import torch
from torch import nn

from warpcache_ray.toyworld.train.loop import FlatMuon, optimizers


def test_flat_muon_is_muon_on_matrices() -> None:
    """On the weight of a linear layer it does what torch's own does."""
    torch.manual_seed(0)
    start, grad = torch.randn(6, 4), torch.randn(6, 4)
    ours, torchs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours.grad, torchs.grad = grad.clone(), grad.clone()
    FlatMuon([ours], 0.1).step()
    torch.optim.Muon([torchs], 0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw").step()
    assert not torch.equal(ours, start)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_flat_muon_moves_kernels_in_any_layout(layout: torch.memory_format) -> None:
    """A convolution with a single large gradient moves against it, whatever the order of its storage."""
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 4, 3).to(memory_format=layout)
    before = conv.weight.detach().clone()
    gradient = torch.zeros_like(conv.weight)
    gradient[2, 1, 0, 1, 2] = 1.0
    conv.weight.grad = gradient
    FlatMuon([conv.weight], 0.1).step()
    moved = (conv.weight - before * (1 - 0.1 * 0.01)).detach()
    assert moved[2, 1, 0, 1, 2] < -0.01
    moved[2, 1, 0, 1, 2] = 0
    assert moved.abs().max() < 1e-4


def test_optimizers_share_out_all_parameters() -> None:
    """Each learning parameter has one optimiser: matrices that the pattern names Muon, the others AdamW."""
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)]), "out": nn.Linear(4, 2)})
    model["out"].bias.requires_grad_(False)
    adam, muon = optimizers(model, 1e-3, 1e-3, r"blocks\.")
    assert isinstance(muon, FlatMuon)
    assert [id(p) for p in muon.parameters] == [id(model["blocks"][0].weight)]
    rest = {id(p) for p in adam.param_groups[0]["params"]}
    assert rest == {id(model["blocks"][0].bias), id(model["out"].weight)}
