"""The optimizers of a run, and its learning rate as a function of the step."""

from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from training.config import TrainConfig
from training.muon import Muon, split_parameters


def build_optimizers(model: nn.Module, config: TrainConfig, examples: int) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers of the trainable parameters, each with its full learning rate.

    Args:
        examples: of an update, over all processes; `scale_lr` multiplies by it.
    """
    adam = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    scale = examples if config.scale_lr else 1
    if config.optimizer == "muon":
        matrices, others = split_parameters(model)
        muon = Muon(matrices, lr=config.learning_rate * scale, ns_steps=4)
        rate = config.adam_learning_rate * scale
        return [
            (muon, config.learning_rate * scale),
            (torch.optim.AdamW(others, lr=rate, **adam), rate),
        ]
    kind = torch.optim.AdamW
    if config.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit as kind  # pyright: ignore[reportMissingImports]
    rate = config.learning_rate * scale
    return [(kind([value for value in model.parameters() if value.requires_grad], lr=rate, **adam), rate)]


def learning_rate_schedule(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """Step (updates done so far) -> share of the full learning rate.

    It counts updates of the weights, however many processes and accumulated batches make one.

    Args:
        steps: of the whole run.
    """
    if config.lr_scheduler == "cooldown":

        def cooldown(step: int) -> float:
            left = (steps - step) / max(1.0, config.lr_cooldown * steps)
            return min(1.0, (step + 1) / max(1, config.lr_warmup_steps), left)

        return cooldown
    options = {}
    if config.lr_scheduler == "polynomial":  # ends at 1e-7 of the rate that diffusers is told, which must be above that
        options["power"] = config.lr_power
    if config.lr_scheduler == "cosine_with_restarts":
        options["num_cycles"] = config.lr_num_cycles
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(
        config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=steps, **options
    )
    return schedule.lr_lambdas[0]
