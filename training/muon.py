"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al., https://kellerjordan.github.io/posts/muon/)."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions; a convolution counts as a matrix of its output channels.

    torch.optim.Muon takes 2-D parameters only. Here matrices of one shape are orthogonalised in one batched product.

    Args:
        lr: step length; the update of every matrix has the same spectral norm.
        momentum: Nesterov momentum.
        weight_decay: decoupled, per unit of lr.
        ns_steps: Newton-Schulz iterations.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, ns_steps=ns_steps))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(param.grad)
                momentum = state["momentum_buffer"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(momentum, group["momentum"]).flatten(1)
                by_shape[tuple(update.shape)].append((param, update))
            for (rows, columns), pairs in by_shape.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]), group["ns_steps"])
                length = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(param), alpha=-length)
        return loss


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """(N, rows, columns) -> matrices with the same singular vectors and all singular values near 1 (Newton-Schulz).

    Every iterate is the first matrix times a polynomial of its Gram matrix, and those commute. So what is iterated is
    the polynomial: products of small square matrices, where the plain iteration multiplies the long one twice a step.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    polynomial = identity = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c).add_(identity, alpha=a)
        polynomial = factor @ polynomial if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    x = polynomial @ x
    return x.mT if tall else x


def split_parameters(*modules: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters for Muon (weights of hidden layers) and for AdamW (embeddings, biases, norms)."""
    matrices, others = [], []
    for module in modules:
        for part in module.modules():
            for param in part.parameters(recurse=False):
                hidden = param.ndim >= 2 and not isinstance(part, nn.Embedding)
                (matrices if hidden else others).append(param)
    return matrices, others
