import dataclasses

import pytest
import torch
from diffusers.optimization import get_scheduler

from training.config import TrainConfig
from training.muon import Muon, orthogonalize, split_parameters
from training.optimizers import build_optimizers, learning_rate_schedule

NAMES = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


@pytest.mark.parametrize("name", NAMES)
def test_learning_rates_are_those_of_diffusers(name):
    config = TrainConfig(lr_scheduler=name, lr_warmup_steps=5, lr_num_cycles=2, lr_power=2.0)
    schedule = learning_rate_schedule(config, 40)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    peer = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=40, num_cycles=2, power=2.0)
    for step in range(40):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        peer.step()


def test_cooldown():
    schedule = learning_rate_schedule(TrainConfig(lr_scheduler="cooldown", lr_warmup_steps=10, lr_cooldown=0.5), 100)
    assert [schedule(step) for step in (0, 4, 9, 30, 50, 75, 100)] == pytest.approx([0.1, 0.5, 1, 1, 1, 0.5, 0])


def test_optimizers():
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Embedding(3, 4))
    model[1].requires_grad_(False)
    config = TrainConfig(learning_rate=1e-3, adam_beta2=0.9, adam_epsilon=1e-6, scale_lr=True)
    [(adamw, rate)] = build_optimizers(model, config, examples=6)
    assert rate == pytest.approx(6e-3) and len(adamw.param_groups[0]["params"]) == 2
    group = adamw.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (pytest.approx(6e-3), (0.9, 0.9), 1e-6)
    model.requires_grad_(True)
    (muon, rate), (adamw, other) = build_optimizers(
        model, dataclasses.replace(config, optimizer="muon", scale_lr=False), 6
    )
    assert isinstance(muon, Muon) and (rate, other) == (1e-3, 1e-3)
    assert sum(len(optimizer.param_groups[0]["params"]) for optimizer in (muon, adamw)) == 3


def test_muon_orthogonalises_and_descends():
    torch.manual_seed(0)
    for shape in ((3, 16, 64), (3, 64, 16), (1, 8, 8)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape), 5))
        assert 0.5 < singular.min() and singular.max() < 1.3
    matrix = torch.randn(8, 24)
    plain = matrix / matrix.norm()
    for _ in range(5):
        gram = plain @ plain.T
        plain = 3.4445 * plain + (-4.7750 * gram + 2.0315 * gram @ gram) @ plain
    torch.testing.assert_close(orthogonalize(matrix[None], 5)[0], plain, rtol=1e-4, atol=1e-5)
    conv = torch.nn.Conv2d(4, 8, 3)
    matrices, others = split_parameters(torch.nn.Sequential(conv, torch.nn.Embedding(3, 4), torch.nn.GroupNorm(2, 8)))
    assert [tuple(matrix.shape) for matrix in matrices] == [(8, 4, 3, 3)] and len(others) == 4
    optimizer, x = Muon(matrices, lr=0.05), torch.randn(16, 4, 3, 3)
    target = x.flatten(1) @ torch.randn(36, 8)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (conv(x).flatten(1) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
