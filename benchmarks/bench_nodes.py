"""What the nodes cost: ComfyUI's own KSampler on a UniGS MODEL, beside the same on a plain inpainting model.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_nodes --cpu-time

Both have a UNet of Stable Diffusion 1.5 with the same random weights; UniGS has 13 input channels instead of 9, 8
output channels instead of 4, and a task. They sample in turns, in one process of ComfyUI's environment (`make setup`
fetches one; COMFYUI_PATH and COMFYUI_PYTHON count), and the ratio of each round is taken. What UniGS Conditioning
prepares before is timed apart: it is done once, whatever the number of steps. `--cpu-time` with one thread is steadier
than the time of day on a CPU that has other things to do.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent


def measure(file: Path, size: int, steps: int, rounds: int, cfg: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Runs inside ComfyUI. file: an original one of Stable Diffusion 1, whatever its weights."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch
    from pack.nodes import native
    from pack.nodes.conditioning import prepare
    from pack.unigs.checkpoints import open_checkpoint
    from pack.unigs.tasks import Task

    import nodes  # ComfyUI's

    torch.manual_seed(0)
    model, clip, vae = native.load(open_checkpoint(file), torch.float32)
    unet = model.model.diffusion_model
    for weight in unet.parameters():
        weight.normal_(0, 0.02)

    # The peer is made of the very same weights, without what UniGS adds.
    config = comfy.supported_models.SD15({**model.model.model_config.unet_config, "in_channels": 9, "out_channels": 4})
    config.set_inference_dtype(torch.float32, None)
    plain = config.get_model({}, device=torch.device("meta"))
    weights = {name: weight for name, weight in unet.state_dict().items() if not name.startswith("label_emb")}
    weights["input_blocks.0.0.weight"] = weights["input_blocks.0.0.weight"][:, :9].contiguous()
    weights |= {name: weights[name][:4].contiguous() for name in ("out.2.weight", "out.2.bias")}
    plain.diffusion_model.load_state_dict(weights, assign=True)
    plain.device = None
    place = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    peer = comfy.model_patcher.ModelPatcher(plain.to(place[1]), *place)

    image = torch.rand(1, size, size, 3)
    mask = torch.zeros(1, size, size)
    mask[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    started = clock()
    ready = prepare(model, clip, vae, Task.INPAINTING, "dog", "", image, mask)
    preparing = clock() - started
    latent = {"samples": torch.zeros(1, 4, size // 8, size // 8)}
    positive, negative = (
        [[embeds, {"concat_latent_image": latent["samples"], "concat_mask": mask[:, None]}]]
        for ((embeds, _),) in (ready.positive, ready.negative)
    )

    def sample(patcher: Any, conds: tuple[Any, Any], start: dict[str, Any]) -> Callable[[], None]:
        sampler = nodes.KSampler()
        return lambda: sampler.sample(patcher, 0, steps, cfg, "euler", "simple", *conds, start)

    runs = {
        "UniGS": sample(ready.model, (ready.positive, ready.negative), ready.latent),
        "inpainting": sample(peer, (positive, negative), latent),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            started = clock()
            runs[name]()
            if number:  # the first round warms up
                times[name].append(clock() - started)
    return {"times": times, "preparing": preparing}


def main() -> None:
    from tests.host.processes import run_in_host
    from tests.unigs import ldm_files

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="a sampling (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="samplings of each (default: %(default)s)")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance scale; 1 is without (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the process instead of the time of day")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = ldm_files.write(Path(folder) / "sd1.safetensors", ldm_files.stable_diffusion_1())
        settings = (options.size, options.steps, options.rounds, options.cfg, int(options.cpu_time))
        found = run_in_host(str(Path(__file__).resolve()), file, *settings)
    times = found["times"]
    ratios = sorted(ours / theirs for ours, theirs in zip(times["UniGS"], times["inpainting"], strict=True))
    print(
        f"Stable Diffusion 1.5 UNet, random, fp32, {options.size} x {options.size}, {options.steps} steps, "
        f"cfg {options.cfg:g}, {options.rounds} rounds{', CPU time' if options.cpu_time else ''}\n"
    )
    print("| KSampler on | seconds a sampling (median) |\n|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.median(taken):.2f} |")
    quarter = len(ratios) // 4
    print(
        f"\nratio of a round: median {statistics.median(ratios):.4f}, half of them between {ratios[quarter]:.4f} and "
        f"{ratios[-1 - quarter]:.4f}; preparing took {found['preparing']:.2f} s"
    )


def inside() -> None:
    sys.path.insert(0, str(REPO / "tests" / "host"))
    from inside import begin

    file, size, steps, rounds, cfg, cpu_time = begin(sys.argv)
    import torch

    clock = time.process_time if cpu_time == "1" else time.perf_counter
    with torch.inference_mode():
        print(json.dumps(measure(Path(file), int(size), int(steps), int(rounds), float(cfg), clock)))


if __name__ == "__main__":
    if sys.argv[2:3] in (["cpu-torch"], ["any-torch"]):  # as `run_in_host` starts it
        inside()
    else:
        main()
