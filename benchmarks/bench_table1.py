"""Table 1 of the paper's supplementary, parameters and inference speed: `python -m benchmarks.bench_table1`.

UniGS beside diffusers' own StableDiffusionInpaintPipeline, which has the same VAE, text encoder and tokenizer and all
weights of the UNet but the first and the last layer's. Both repaint the same region of the same picture with the same
prompt, DDIM, steps, guidance and dtype, in turns, in one process. The weights are random in the exact shape of Stable
Diffusion 1.5, on which times do not depend; `--checkpoint` takes a real inpainting model of that family instead. What
counts are medians of the rounds' ratios, because machines differ and are busy with other things:

- the loop: all that happens between the encoded inputs and the final latents. It is what widening the UNet costs.
- the whole call. At a few steps it is longer than the loop says, since UniGS decodes two latents, picture and colormap,
  and then the masks. What it takes at the paper's 200 steps is computed from the parts, and said to be.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_table1 --cpu-time --steps 1 --rounds 1 --loop-rounds 7
    python -m benchmarks.bench_table1 --device cuda --dtype fp16 --steps 200 --variants --json table1.json
    python -m benchmarks.bench_table1 --tiny --size 64 --variants

The first is for a CPU. There the VAE takes longer than a few steps: `--loop-rounds` are further rounds with one that
takes no time. `--cpu-time` with one thread is steadier than the time of day, and so is memory not given back: on
Linux with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=99999999999. The last command tries out all that there is.
`--variants` measures UniGS alone, as it is and as `UniGSPipeline.optimize` makes it: seconds a picture, the loop's
arithmetic as a share of what one large matrix product reaches in the same run, a few steps of three samplers, and how
far the final latents are from those of the pipeline as it is, after the same noise.
"""

import argparse
import copy
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unigs.checkpoints import CLIP_VOCABULARY
from unigs.dichotomy import decode_colormaps
from unigs.pipeline import UniGSPipeline
from unigs.stable_diffusion import SD1
from unigs.tasks import Task
from unigs.unet import widen_unet

PAPER_STEPS = 200
NAMES = ("Stable Diffusion", "UniGS")
AIM = {"cpu": 1.005, "cuda": 1.000}  # at most, for the ratio of the loops
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
VARIANTS = ("eager", "channels_last", "compile", "cuda_graph")
SAMPLERS = {"DDIM": DDIMScheduler, "Euler": EulerDiscreteScheduler, "DPM++ 2M": DPMSolverMultistepScheduler}
GUIDANCE = 7.5
Seconds = dict[str, float]  # of the parts of a call


class Clock:
    """Adds up the seconds of named parts. On a GPU it waits for the work that is under way.

    With `cpu_time` the seconds are those that this process computed, of all threads: what others do costs it less.
    """

    def __init__(self, device: str, cpu_time: bool = False):
        self.device, self.cpu_time = device, cpu_time
        self.seconds: Seconds = {}

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.cpu_time else time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + self.now() - start

    @contextmanager
    def watch(self, **modules: nn.Module) -> Iterator[None]:
        """Every call of these modules is a part, under the name given here."""
        handles, starts = [], {}
        for name, module in modules.items():

            def before(*_: Any, name: str = name) -> None:
                starts[name] = self.now()

            def after(*_: Any, name: str = name) -> None:
                self.seconds[name] = self.seconds.get(name, 0) + self.now() - starts[name]

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        yield
        for handle in handles:
            handle.remove()


class LoopTimer(DiffusionPipeline):
    """A pipeline whose denoising loop, which is what runs under its progress bar, is a part of the clock."""

    clock: Clock

    @contextmanager
    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Iterator[Any]:
        with super().progress_bar(iterable, total) as bar, self.clock.part("loop"):
            yield bar


class TimedUniGS(LoopTimer, UniGSPipeline):
    pass


class TimedInpainting(LoopTimer, StableDiffusionInpaintPipeline):
    pass


Timed = TypeVar("Timed", bound=LoopTimer)


def timed(pipe: Timed, clock: Clock) -> Timed:
    pipe.clock = clock
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_vae(tiny: bool) -> AutoencoderKL:
    narrow = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1} if tiny else {}
    return AutoencoderKL.from_config(SD1.configs["vae"] | narrow).eval()


def random_unigs(tiny: bool) -> TimedUniGS:
    """Random weights in the shape of Stable Diffusion 1.5 inpainting, widened; or narrow ones, to try things out."""
    torch.manual_seed(0)
    narrow: dict[str, dict[str, Any]] = {"unet": {}, "text_encoder": {}}
    if tiny:
        narrow["unet"] = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1, "cross_attention_dim": 32}
        narrow["text_encoder"] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    unet = UNet2DConditionModel.from_config(SD1.configs["unet"] | {"in_channels": 9} | narrow["unet"]).eval()
    text_encoder = CLIPTextModel(CLIPTextConfig(**SD1.configs["text_encoder"] | narrow["text_encoder"])).eval()
    tokenizer = CLIPTokenizer.from_pretrained(CLIP_VOCABULARY, local_files_only=True, model_max_length=77)
    scheduler = DDIMScheduler.from_config(SD1.configs["scheduler"])
    return TimedUniGS(random_vae(tiny), text_encoder, tokenizer, widen_unet(unet), scheduler)


def inpainting_of(unigs: TimedUniGS) -> TimedInpainting:
    """The pipeline that `unigs` was widened from, of the same components, and its UNet's weights shared."""
    state = unigs.unet.state_dict()
    first = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([first[:, :4], first[:, 8:]], dim=1)  # without the colormap's latents
    state["conv_out.weight"], state["conv_out.bias"] = state["conv_out.weight"][:4], state["conv_out.bias"][:4]
    state.pop("class_embedding.weight", None)
    narrow = empty_unet(unigs.unet, in_channels=9, out_channels=4, num_class_embeds=None)
    narrow.load_state_dict(state, assign=True)
    return TimedInpainting(
        vae=unigs.vae,
        text_encoder=unigs.text_encoder,
        tokenizer=unigs.tokenizer,
        unet=narrow,
        scheduler=DDIMScheduler.from_config(unigs.scheduler.config),
        safety_checker=None,
        feature_extractor=None,  # pyright: ignore[reportArgumentType]  # only the safety checker has one
        requires_safety_checker=False,
    )


def empty_unet(like: UNet2DConditionModel, **changes: Any) -> UNet2DConditionModel:
    """One without weights."""
    config = {name: value for name, value in like.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config | changes).eval()


class Request:
    """What both pipelines are asked for: a picture of noise, its middle painted anew."""

    prompt = Task.INPAINTING.spec.prompt("dog and cat")

    def __init__(self, size: int):
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        middle = np.zeros((size, size), np.uint8)
        middle[size // 4 : -size // 4, size // 4 : -size // 4] = 255
        self.size, self.picture, self.region = size, Image.fromarray(noise), Image.fromarray(middle)

    def run(self, pipe: TimedUniGS | TimedInpainting, steps: int, **options: Any) -> Any:
        options |= {"image": self.picture, "prompt": self.prompt, "guidance_scale": GUIDANCE}
        options |= {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0)}
        if isinstance(pipe, TimedUniGS):
            return pipe(Task.INPAINTING, coarse_mask=self.region, **options)
        return pipe(mask_image=self.region, height=self.size, width=self.size, **options)

    def measure(self, pipe: TimedUniGS | TimedInpainting, steps: int, parts: bool = False) -> Seconds:
        """Of a call and its loop; with `parts` of all of it, and UniGS decodes the masks once more for that."""
        clock = pipe.clock
        clock.seconds = {}
        watched = {"text": pipe.text_encoder, "encode": pipe.vae.encoder, "decode": pipe.vae.decoder} if parts else {}
        with clock.watch(**watched), clock.part("call"):
            out = self.run(pipe, steps)
        if parts and isinstance(pipe, TimedUniGS):
            pixels = np.stack([np.asarray(colormap) for colormap in out.colormaps])
            with clock.part("masks"):
                decode_colormaps(pixels, keep_background=False, background_radius=pipe.palette.background_radius)
        return clock.seconds


def peak_memory(device: str) -> float:
    """GiB: on a GPU what torch held there since it was asked last; else what the process did since its start."""
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def flops_a_step(unet: UNet2DConditionModel, latent_size: int) -> float:
    """Floating point operations of one guided step, which is two pictures through the UNet. Nothing is computed."""
    model, config = empty_unet(unet), unet.config
    with torch.device("meta"):
        latents = torch.empty(2, config["in_channels"], latent_size, latent_size)
        words = torch.empty(2, 77, config["cross_attention_dim"])
        labels = torch.zeros(2, dtype=torch.int64) if config["num_class_embeds"] else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(latents, 1, encoder_hidden_states=words, class_labels=labels)
    return float(counter.get_total_flops())


def matmul_flops_per_second(clock: Clock, dtype: torch.dtype) -> float:
    """The most that one large matrix product reaches."""
    side = 8192 if clock.device == "cuda" else 512
    left, right = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    times = []
    for _ in range(20):
        start = clock.now()
        torch.matmul(left, right)
        times.append(clock.now() - start)
    return 2 * side**3 / min(times)


def compare(
    theirs: TimedInpainting, ours: TimedUniGS, request: Request, steps: int, rounds: int, loop_rounds: int
) -> dict[str, Any]:
    """Table 1. A round is one call of each, and who begins changes."""
    pipes, device = (theirs, ours), ours.clock.device
    for pipe in pipes:  # what is slow only the first time; on a CPU that does not depend on the size
        (request if device == "cuda" else Request(64)).run(pipe, 1)
    memory: list[float] = []
    vae, quick_vae = ours.vae, random_vae(tiny=True).to(device, ours.vae.dtype)
    whole: list[list[Seconds]] = []
    loops: list[list[float]] = []  # seconds a step
    for number in range(rounds + loop_rounds):
        alone = number >= rounds
        taken: dict[int, Seconds] = {}
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            pipes[which].register_modules(vae=quick_vae if alone else vae)
            peak_memory(device)
            taken[which] = request.measure(pipes[which], steps, parts=not alone)
            if number == 0:
                memory.append(peak_memory(device))
        loops.append([taken[which]["loop"] / steps for which in (0, 1)])
        if not alone:
            whole.append([taken[0], taken[1]])
        print(f"round {number + 1}: a step {loops[-1][0]:.4f} s and {loops[-1][1]:.4f} s", file=sys.stderr, flush=True)
    for pipe in pipes:
        pipe.register_modules(vae=vae)
    return {
        "parameters": [sum(weight.numel() for weight in pipe.unet.parameters()) for pipe in pipes],
        "flops a step": [flops_a_step(pipe.unet, request.size // ours.vae_scale_factor) for pipe in pipes],
        "peak memory": memory,
        "whole": whole,
        "loops": loops,
    }


def print_table1(found: dict[str, Any], steps: int, device: str) -> None:
    def line(title: str, pairs: list[list[float]]) -> float:
        ratios = [ours / theirs for theirs, ours in pairs]
        theirs, ours = np.median(pairs, axis=0)
        spread = f"{np.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})"
        print(f"| {title} | {theirs:.4g} | {ours:.4g} | {spread} |")
        return float(np.median(ratios))

    whole = found["whole"]
    millions = [count / 1e6 for count in found["parameters"]]
    gflop = [count / 1e9 for count in found["flops a step"]]
    print(f"| | {NAMES[0]} | {NAMES[1]} | ratio (least to most of the rounds) |\n|---|---|---|---|")
    print(f"| parameters of the UNet, M | {millions[0]:.2f} | {millions[1]:.2f} | {millions[1] / millions[0]:.5f} |")
    print("| - in the paper | 859.54 | 859.56 | 1.00002 |")
    print(f"| arithmetic of a step, GFLOP | {gflop[0]:.1f} | {gflop[1]:.1f} | {gflop[1] / gflop[0]:.5f} |")
    loop = line("loop, s a step", found["loops"])
    for part, title in {"text": "text, s", "encode": "VAE encodes, s", "decode": "VAE decodes, s"}.items():
        line(title, [[seconds[part] for seconds in both] for both in whole])
    print(f"| masks from the colormap, s | | {np.median([ours['masks'] for _, ours in whole]):.4g} | |")
    line(f"whole call, {steps} steps, s", [[seconds["call"] for seconds in both] for both in whole])
    theirs = float(np.median([theirs for theirs, _ in found["loops"]]))
    step = theirs, theirs * loop  # the ratio of the rounds is surer than that of the medians
    computed = [[s["call"] - s["loop"] + PAPER_STEPS * step[i] for i, s in enumerate(both)] for both in whole]
    line(f"whole call, {PAPER_STEPS} steps, s: computed from the parts", computed)
    print(f"| - in the paper, {PAPER_STEPS} steps, on its machine | 14.48 | 14.40 | 0.9945 |")
    title = "peak memory, GiB" if device == "cuda" else "peak memory of the process after the first call of each, GiB"
    print(f"| {title} | {found['peak memory'][0]:.2f} | {found['peak memory'][1]:.2f} | |")
    print(f"\nLoops: {loop:.4f}. The aim is at most {AIM[device]:.3f}: {'met' if loop <= AIM[device] else 'missed'}.\n")


def measure_variants(pipe: TimedUniGS, request: Request, steps: int, short: int, rounds: int) -> dict[str, Any]:
    """Each variant of `UniGSPipeline.optimize` on a copy of its own: `steps` steps of DDIM, `short` of each sampler."""
    clock, rows = pipe.clock, {}
    peak = matmul_flops_per_second(clock, pipe.unet.dtype)
    work = flops_a_step(pipe.unet, request.size // pipe.vae_scale_factor)
    eager = torch.empty(0)

    def median(fresh: TimedUniGS, steps: int) -> Seconds:
        taken = [request.measure(fresh, steps) for _ in range(rounds)]
        return {part: float(np.median([seconds[part] for seconds in taken])) for part in ("call", "loop")}

    def final_latents(fresh: TimedUniGS) -> Tensor:
        kept: dict[str, Tensor] = {}
        request.run(fresh, steps, callback_on_step_end=lambda _pipe, _step, _t, tensors: kept.update(tensors))
        return kept["latents"].float()

    for variant in VARIANTS:
        fresh = timed(TimedUniGS(**copy.deepcopy(pipe.components)), clock)
        try:
            if variant != "eager":
                fresh.optimize(variant)
        except ValueError as error:
            print(f"{variant} is left out: {error}", file=sys.stderr)
            continue
        start = clock.now()
        latents = final_latents(fresh)
        row = {"first call": clock.now() - start}
        eager = latents if variant == "eager" else eager
        difference = (latents - eager).abs() / eager.std()
        row |= {"largest difference": difference.max().item(), "mean difference": difference.mean().item()}
        peak_memory(clock.device)
        row |= median(fresh, steps)
        row |= {"peak memory": peak_memory(clock.device), "share of the peak": work * steps / row["loop"] / peak}
        for name, scheduler in SAMPLERS.items():
            fresh.scheduler = scheduler.from_config(pipe.scheduler.config)
            request.run(fresh, 2)
            row[name] = median(fresh, short)["call"]
        rows[variant] = row
        print(f"{variant}: {row['call']:.2f} s", file=sys.stderr, flush=True)
    return {"matmul TFLOP/s": peak / 1e12, "variants": rows}


def print_variants(found: dict[str, Any], steps: int, short: int) -> None:
    samplers = " | ".join(f"{short} of {name}, s" for name in SAMPLERS)
    print(f"One large matrix product reaches {found['matmul TFLOP/s']:.3g} TFLOP/s.\n")
    print(f"| UniGS | {steps} steps of DDIM, s | steps a second | share of that | {samplers} | first call, s ", end="")
    print("| peak memory, GiB | final latents differ by at most, on average (in standard deviations) |")
    print("|---" * (7 + len(SAMPLERS)) + "|")
    for variant, row in found["variants"].items():
        speed = f"{row['call']:.2f} | {steps / row['loop']:.2f} | {100 * row['share of the peak']:.1f} %"
        times = " | ".join(f"{row[name]:.2f}" for name in SAMPLERS)
        difference = f"{row['largest difference']:.2g}, {row['mean difference']:.2g}"
        print(f"| {variant} | {speed} | {times} | {row['first call']:.1f} | {row['peak memory']:.2f} | {difference} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="Stable Diffusion inpainting model; default: random weights")
    parser.add_argument("--tiny", action="store_true", help="a narrow model, to try the benchmark out")
    parser.add_argument("--device", choices=AIM, default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--size", type=int, default=512, help="side of the picture (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps of DDIM (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of whole calls (default: %(default)s)")
    parser.add_argument("--loop-rounds", type=int, default=0, help="further rounds, for the loop alone")
    parser.add_argument("--cpu-time", action="store_true", help="count the seconds that this process computes")
    parser.add_argument("--variants", action="store_true", help="also what UniGSPipeline.optimize makes of UniGS")
    parser.add_argument("--short-steps", type=int, default=20, help="steps of the samplers there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    if options.cpu_time and options.device != "cpu":
        parser.error("--cpu-time tells nothing about a GPU")
    diffusers.logging.set_verbosity_error()
    clock, dtype = Clock(options.device, options.cpu_time), DTYPES[options.dtype]
    if options.checkpoint:
        ours = TimedUniGS.from_inpainting(options.checkpoint, torch_dtype=dtype)
        if ours.text_encoder_2 is not None:
            parser.error("--checkpoint: Stable Diffusion 1 or 2 is needed, as XL has another pipeline")
    else:
        ours = random_unigs(options.tiny)
    ours = timed(ours.to(options.device, dtype), clock)
    theirs, request = timed(inpainting_of(ours), clock), Request(options.size)
    machine = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"a CPU, {torch.get_num_threads()} thread(s)"
    )
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    weights = options.checkpoint.name if options.checkpoint else f"random{', tiny' if options.tiny else ''}"
    seconds = "CPU time" if options.cpu_time else "time"
    print(f"{seconds} on {machine}, {options.dtype}, {versions}; weights: {weights}")
    print(f"{options.size} x {options.size}, {options.steps} steps of DDIM, guidance {GUIDANCE}\n", flush=True)
    found: dict[str, Any] = {"machine": machine, "versions": versions, "options": vars(options)}
    found |= compare(theirs, ours, request, options.steps, options.rounds, options.loop_rounds)
    print_table1(found, options.steps, options.device)
    if options.variants:
        found |= measure_variants(ours, request, options.steps, options.short_steps, options.rounds)
        print_variants(found, options.steps, options.short_steps)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
