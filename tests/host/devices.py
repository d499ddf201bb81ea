"""Runs inside ComfyUI's own environment: inputs that come from another device than their companions.

`python devices.py REPO cpu-torch|any-torch`, with ComfyUI's folder on PYTHONPATH, prints JSON. The other device is
PyTorch's lazy one, which every build has, and which refuses to meet the CPU as a GPU does.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch._lazy.ts_backend
from inside import begin
from torch import Tensor


def same_from(run: Callable[..., tuple], **inputs: Tensor) -> dict[str, Any]:
    """Input that is on the other device -> True if the results are what they are on one device, or the error."""
    expected = [one.cpu() for one in run(**inputs)]
    report: dict[str, Any] = {}
    for moved in (*inputs, "all"):
        there = {name: value.to("lazy") if moved in (name, "all") else value for name, value in inputs.items()}
        try:
            found = [one.cpu() for one in run(**there)]
        except RuntimeError as error:
            report[moved] = str(error)[:200]
        else:
            report[moved] = all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    return report


def main() -> dict[str, Any]:
    from pack.nodes.colormap import ColormapEncode
    from pack.nodes.decode import DichotomyDecode, EntityMaskSplit
    from pack.nodes.load import UniGSLoader, register_model_folder
    from pack.nodes.sample import UniGSSampler

    register_model_folder()
    loaded = UniGSLoader.execute("bundled", "default").args
    generator = torch.Generator().manual_seed(0)
    image, colormap = torch.rand(2, 64, 64, 3, generator=generator), torch.zeros(2, 64, 64, 3)
    colormap[:, 16:48, 8:40] = torch.tensor([0.0, 0.5, 1.0])
    mask = colormap[..., 2]

    def sampled(task: str, **options: Any) -> Callable[..., tuple]:
        settings = (1, 1, 1.0, "ddim", "simple")
        return lambda **inputs: UniGSSampler.execute(*loaded, task, "dog", "", *settings, **inputs, **options).args

    def split(masks: Tensor, image: Tensor) -> tuple:
        singles, _, chosen, cutouts, *_ = EntityMaskSplit.execute(
            [masks], ["as given"], [0], [0], [False], [image]
        ).args
        return *singles, *chosen, *cutouts

    return {
        "inpainting": same_from(sampled("inpainting"), image=image, coarse_mask=mask),
        "synthesis": same_from(sampled("synthesis", hold="image"), image=image, colormap=colormap),
        "referring": same_from(sampled("referring", ensemble=3), image=image, coarse_mask=mask),
        "entity": same_from(sampled("entity", hold="colormap"), image=image, colormap=colormap),
        "ColormapEncode": same_from(lambda masks: ColormapEncode.execute(masks, 11).args, masks=mask),
        "DichotomyDecode": same_from(
            lambda colormap: DichotomyDecode.execute(colormap, 10.0, 0, False).args[1:2], colormap=colormap
        ),
        "EntityMaskSplit": same_from(split, masks=mask, image=image[:1]),
    }


if __name__ == "__main__":
    begin(sys.argv)
    torch._lazy.ts_backend.init()
    with torch.inference_mode():
        print(json.dumps(main()))
