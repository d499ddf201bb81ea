"""Training steps from what was cached, beside steps that encode everything: `python -m benchmarks.bench_cached`

A UNet, VAE and text encoder of the shape of Stable Diffusion 1.5 with random weights, on which times do not depend; the
UNet widened to 13 and 8 channels. A step is that of the trainer: noise, UNet, mean squared error, its gradients and
AdamW. It takes moments of latents and embeddings of text, as `training.prepare` caches them, or it encodes pictures and
prompts first. Inpainting encodes three pictures an example, as its control is neither the picture nor the colormap, the
other tasks two; they are measured one by one and weighed by their ratio in the training.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_cached --without-optimizer --gradient-checkpointing --rounds 2
    python -m benchmarks.bench_cached --device cuda --dtype bf16 --batch-size 8 --lora
    python -m benchmarks.bench_cached --device cuda --dtype bf16 --gradient-checkpointing --find-batch-size
    python -m benchmarks.bench_cached --tiny --size 64 --lora

The first is for a CPU, where two moments of AdamW for each weight are more memory than most have; a step takes minutes.
The arithmetic is that of the shapes, so it is the same on every machine. `--find-batch-size` tells the largest batch
that fits GPUs of 12, 24 and 80 GB, as far as the one at hand has so much, for training all weights and for LoRA; it
takes no times. `--dtype bf16` is autocast, as accelerate does it: trained weights stay float32, frozen ones are bf16.
"""

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.bench_table1 import DTYPES, Clock, peak_memory, random_vae
from training.latents import Batch, encode_batch
from training.objective import add_noise, squared_errors
from unigs.conditions import LATENT_CHANNELS, unet_input
from unigs.stable_diffusion import SD1
from unigs.tasks import Task

RANK = 16
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TOKENS = 77
BUDGETS = (12, 24, 80)  # GiB of a GPU
CUDA_ITSELF = 0.75  # GiB that a process needs on a GPU beside what torch allocates
ENCODING = (Task.INPAINTING, Task.ENTITY)  # three pictures an example, and two


@dataclass(frozen=True)
class Setting:
    """How the UNet is trained: all of its weights or adapters, with which memory."""

    lora: bool = False
    gradient_checkpointing: bool = False
    optimizer: bool = True
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    tiny: bool = False

    def build_unet(self) -> UNet2DConditionModel:
        narrow = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1, "cross_attention_dim": 32}
        wide = {"in_channels": 13, "out_channels": 8, "num_class_embeds": len(Task)}
        with torch.device(self.device):
            unet = UNet2DConditionModel.from_config(SD1.configs["unet"] | wide | (narrow if self.tiny else {}))
        if self.lora:
            from peft import LoraConfig

            self.freeze(unet)
            unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
            cast_training_params(unet, torch.float32)
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return unet.to(self.device, memory_format=torch.channels_last).train()

    def build_encoders(self) -> tuple[AutoencoderKL, CLIPTextModel]:
        """VAE and text encoder, frozen."""
        narrow: dict[str, Any] = (
            {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2} if self.tiny else {}
        )
        with torch.device(self.device):
            vae = random_vae(self.tiny)
            text_encoder = CLIPTextModel(CLIPTextConfig(**SD1.configs["text_encoder"] | narrow)).eval()
        self.freeze(vae)
        self.freeze(text_encoder)
        return vae, text_encoder

    def freeze(self, module: nn.Module) -> None:
        module.requires_grad_(False).to(self.dtype)


class Training:
    """Steps of one UNet. Without encoders it can only go from what is cached."""

    def __init__(self, setting: Setting, encoders: tuple[AutoencoderKL, CLIPTextModel] | None = None):
        self.setting, self.encoders = setting, encoders
        self.unet = setting.build_unet()
        self.scheduler = DDIMScheduler.from_config(SD1.configs["scheduler"])
        trained = [weight for weight in self.unet.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5) if setting.optimizer else None

    def encode(self, batch: Batch) -> Batch:
        """Of pixels and tokens (`pixel_batch`) what is cached."""
        assert self.encoders is not None
        vae, text_encoder = self.encoders
        batch = encode_batch(vae, batch)
        with torch.no_grad():
            batch["text"] = text_encoder(batch.pop("input_ids")).last_hidden_state
        return {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}

    def step(self, batch: Batch) -> None:
        """From a batch of pixels or of what is cached."""
        batch = self.encode(batch) if "image" in batch else batch
        mean, device = batch["image_mean"], batch["image_mean"].device
        for name in ("noise", "posterior_noise"):
            batch[name] = torch.randn(len(mean), 2 * LATENT_CHANNELS, *mean.shape[2:], device=device)
        batch["timestep"] = torch.randint(self.scheduler.config["num_train_timesteps"], (len(mean),), device=device)
        noisy, target = add_noise(batch, self.scheduler)
        inputs = unet_input(noisy[:, :LATENT_CHANNELS], noisy[:, LATENT_CHANNELS:], batch["mask"], batch["control"])
        half = self.setting.dtype is not torch.float32
        with torch.autocast(self.setting.device, self.setting.dtype, enabled=half):
            prediction = self.unet(
                inputs.contiguous(memory_format=torch.channels_last),
                batch["timestep"],
                batch["text"],
                class_labels=batch["task"],
            ).sample
        squared_errors(prediction, target).mean().backward()
        if self.optimizer is not None:
            self.optimizer.step()
        self.unet.zero_grad()


def pixel_batch(task: Task, count: int, size: int, device: str) -> Batch:
    """A batch of one task as the loader gives it: noise for pictures."""
    return {
        "image": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device),
        "colormap": torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device),
        "coarse_mask": torch.rand(count, size, size, device=device) < 0.5,
        "task": torch.full((count,), task.spec.id, device=device),
        "input_ids": torch.randint(0, 49406, (count, TOKENS), device=device),
    }


def cached_batch(unet: UNet2DConditionModel, count: int, size: int, device: str) -> Batch:
    """A batch as it is cached: noise for latents and text."""
    side, words = size // 8, unet.config["cross_attention_dim"]
    latents = ("image_mean", "image_std", "colormap_mean", "colormap_std", "control")
    return {
        **{name: torch.rand(count, LATENT_CHANNELS, side, side, device=device) for name in latents},
        "mask": torch.ones(count, 1, side, side, device=device),
        "text": torch.randn(count, TOKENS, words, device=device),
        "task": torch.full((count,), Task.ENTITY.spec.id, device=device),
    }


def expected(inpainting: float, others: float) -> float:
    """Of something that differs between inpainting and the other tasks, the mean over the examples of a training."""
    ratios = {task: task.spec.sample_ratio for task in Task}
    share = ratios[Task.INPAINTING] / sum(ratios.values())
    return share * inpainting + (1 - share) * others


def flops(setting: Setting, size: int) -> tuple[float, float]:
    """Floating point operations of an example: of a step from what is cached, and of encoding, by the shapes."""
    shapes = Setting(setting.lora, setting.gradient_checkpointing, False, torch.float32, "meta", setting.tiny)
    training = Training(shapes, shapes.build_encoders())

    def count(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return float(counter.get_total_flops())

    def encode(pictures: int) -> None:
        vae, text_encoder = training.encoders or shapes.build_encoders()
        with torch.no_grad():
            vae.encode(torch.empty(pictures, 3, size, size, device="meta"))
            text_encoder(torch.zeros(1, TOKENS, dtype=torch.int64, device="meta"))

    def step() -> None:
        inputs = torch.empty(1, 13, size // 8, size // 8, device="meta")
        words = torch.empty(1, TOKENS, training.unet.config["cross_attention_dim"], device="meta")
        labels = torch.zeros(1, dtype=torch.int64, device="meta")
        training.unet(inputs, 1, words, class_labels=labels).sample.sum().backward()

    return count(step), expected(count(lambda: encode(3)), count(lambda: encode(2)))


@dataclass(frozen=True)
class Measured:
    """Of every round the seconds of a step from what is cached, and of one that encodes, a mean over the tasks."""

    cached: list[float]
    encoding: list[float]
    memory: tuple[float, float]  # peaks of the two, GiB

    @property
    def ratios(self) -> list[float]:
        return [slow / fast for slow, fast in zip(self.encoding, self.cached, strict=True)]


def measure(setting: Setting, size: int, count: int, rounds: int, clock: Clock) -> Measured:
    """Rounds of one step from what is cached, and one that encodes for each kind of task."""
    training, device = Training(setting), setting.device
    cached = partial(cached_batch, training.unet)

    def seconds(batch: Batch) -> float:
        start = clock.now()
        training.step(batch)
        return clock.now() - start

    # What is slow only the first time; on a CPU that does not depend on the size.
    first = (count, size, device) if device == "cuda" else (1, 64, device)
    for _ in range(2):
        training.step(cached(*first))
    peak_memory(device)
    training.step(cached(*first))
    alone = peak_memory(device)
    training.encoders = setting.build_encoders()
    for task in ENCODING:
        training.step(pixel_batch(task, *first))
    found: tuple[list[float], list[float]] = [], []
    for number in range(rounds):
        found[0].append(seconds(cached(count, size, device)))
        found[1].append(expected(*(seconds(pixel_batch(task, count, size, device)) for task in ENCODING)))
        print(f"round {number + 1}: {found[0][-1]:.3f} s, {found[1][-1]:.3f} s", file=sys.stderr, flush=True)
    return Measured(*found, (alone, peak_memory(device)))


def largest(fits: Callable[[int], bool], limit: int = 1024) -> int:
    """The largest number up to `limit` that fits, if all smaller ones do too; 0 if 1 does not."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fits_in_memory(setting: Setting, size: int, cached: bool, count: int) -> bool:
    """Whether two steps of a batch of `count` examples, the second with AdamW's moments, find the memory they need."""
    training, fits = None, True
    try:
        training = Training(setting, None if cached else setting.build_encoders())
        for _ in range(2):
            if cached:
                training.step(cached_batch(training.unet, count, size, setting.device))
            else:
                training.step(pixel_batch(Task.INPAINTING, count, size, setting.device))
    except torch.cuda.OutOfMemoryError:
        fits = False
    del training  # the next one needs its memory
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()
    return fits


def budget_share(budget: float, total: float) -> float | None:
    """The share of a GPU of `total` GiB that torch may use as if it were one of `budget`; None if it has too little."""
    if total < 0.95 * budget:  # one that is sold as having 80 GB has somewhat less
        return None
    return (min(budget, total) - CUDA_ITSELF) / total


def print_batch_sizes(settings: list[Setting], size: int) -> None:
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    print(f"largest batch of {size} x {size}; {torch.cuda.get_device_name()}, {total:.1f} GiB\n")
    print(f"| training | from | {' | '.join(f'{budget} GB' for budget in BUDGETS)} |\n|---|---|{'---|' * len(BUDGETS)}")
    for setting in settings:
        for cached in (True, False):
            row = []
            for budget in BUDGETS:
                share = budget_share(budget, total)
                if share is None:
                    row.append("not measured")
                    continue
                torch.cuda.set_per_process_memory_fraction(share)
                row.append(str(largest(partial(fits_in_memory, setting, size, cached))))
            print(
                f"| {title(setting)} | {'what is cached' if cached else 'pictures'} | {' | '.join(row)} |", flush=True
            )


def title(setting: Setting) -> str:
    what = f"LoRA, rank {RANK}" if setting.lora else "all weights"
    return f"{what}, gradient checkpointing" if setting.gradient_checkpointing else what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a narrow model, to try the benchmark out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora", action="store_true", help="also adapters instead of all weights (needs peft)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--without-optimizer", action="store_true", help="steps end with the gradients")
    parser.add_argument("--cpu-time", action="store_true", help="count the seconds that this process computes")
    parser.add_argument("--find-batch-size", action="store_true", help="only the largest batch for each size of GPU")
    options = parser.parse_args()
    if options.device != "cuda" and options.find_batch_size:
        parser.error("--find-batch-size needs --device cuda")
    if options.device == "cuda" and options.cpu_time:
        parser.error("--cpu-time tells nothing about a GPU")
    diffusers.logging.set_verbosity_error()
    settings = [
        Setting(
            lora,
            options.gradient_checkpointing,
            not options.without_optimizer,
            DTYPES[options.dtype],
            options.device,
            options.tiny,
        )
        for lora in ((False, True) if options.lora or options.find_batch_size else (False,))
    ]
    if options.find_batch_size:
        return print_batch_sizes(settings, options.size)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} thread(s)"
    print(f"{machine}, {options.dtype}, batches of {options.batch_size}, {options.size} x {options.size}, ", end="")
    print(f"{'gradients only' if options.without_optimizer else 'AdamW'}, torch {torch.__version__}\n")
    print("| training | | from what is cached | encoding everything | ratio (least to most) |\n|---|---|---|---|---|")
    for setting in settings:
        step, encoding = flops(setting, options.size)
        name = title(setting)
        print(f"| {name} | GFLOP an example | {step / 1e9:.0f} | {(step + encoding) / 1e9:.0f} | ", end="")
        print(f"{(step + encoding) / step:.2f} |", flush=True)
        clock = Clock(options.device, options.cpu_time)
        found = measure(setting, options.size, options.batch_size, options.rounds, clock)
        speeds = [options.batch_size / float(np.median(seconds)) for seconds in (found.cached, found.encoding)]
        spread = f"{np.median(found.ratios):.2f} ({min(found.ratios):.2f} to {max(found.ratios):.2f})"
        print(f"| {name} | examples a second | {speeds[0]:.4g} | {speeds[1]:.4g} | {spread} |")
        if options.device == "cuda":
            print(f"| {name} | peak memory, GiB | {found.memory[0]:.2f} | {found.memory[1]:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
