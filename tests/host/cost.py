"""Runs inside ComfyUI's own environment: a KSampler on a UniGS MODEL and on a plain inpainting one, in turns.

`python cost.py REPO cpu-torch|any-torch FILE SIZE STEPS ROUNDS CFG CPU_TIME` prints the times as JSON; it is
`benchmarks/bench_nodes.py` that starts it. FILE: an original one of Stable Diffusion 1, whatever its weights.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inside import begin


def measure(file: Path, size: int, steps: int, rounds: int, cfg: float, clock: Callable[[], float]) -> dict[str, Any]:
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


if __name__ == "__main__":
    file, size, steps, rounds, cfg, cpu_time = begin(sys.argv)
    import torch

    clock = time.process_time if cpu_time == "True" else time.perf_counter
    with torch.inference_mode():
        print(json.dumps(measure(Path(file), int(size), int(steps), int(rounds), float(cfg), clock)))
