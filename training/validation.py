"""A contact sheet of all four tasks on held-out scenes, to look at while a model trains."""

import numpy as np
import torch
from PIL import Image

from training.datasets.scenes import Scenes
from training.joint import make_example
from unigs.conditions import control_picture
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task


def validation_sheet(pipeline: UniGSPipeline, scenes: Scenes, columns: int = 8, seed: int = 0) -> Image.Image:
    """Three rows a task: what was given over what came out (picture, colormap); one column a scene."""
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for task in Task:
        examples = [
            make_example(scenes[i], np.random.default_rng([seed, i]), pipeline.palette, task=task)
            for i in range(columns)
        ]
        image, colormap = (
            torch.from_numpy(np.stack([getattr(example, name) for example in examples])).permute(0, 3, 1, 2) / 255
            for name in ("image", "colormap")
        )
        coarse_mask = torch.from_numpy(np.stack([example.coarse_mask for example in examples]))
        out = pipeline(
            task,
            image=image,
            colormap=colormap,
            coarse_mask=coarse_mask,
            prompt=[example.prompt for example in examples],
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        )
        given = control_picture(task, image, coarse_mask, colormap)
        if task is Task.REFERRING:
            given = torch.where(coarse_mask[:, None], given, given / 2)
        rows += [given, out.images, out.colormaps]
    grid = torch.stack([row.cpu() for row in rows])  # (rows, columns, 3, H, W)
    pixels = grid.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return Image.fromarray((pixels * 255).round().byte().numpy())
