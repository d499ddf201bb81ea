"""Colormap Encode: entity masks -> the colormap that asks for a picture of them."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..unigs.palette import LocationAwarePalette
from .types import CATEGORY, as_masks, image_of


class ColormapEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSColormapEncode",
            display_name="Colormap Encode",
            category=CATEGORY,
            description="Paints a batch of entity masks as one colormap: each entity gets a flat colour that tells "
            "where it lies. Empty masks get none; later masks lie on top of earlier ones.",
            inputs=[
                io.Mask.Input("masks", tooltip="One mask an entity, all of the size of the picture to come."),
                io.Int.Input(
                    "grid",
                    default=11,
                    min=1,
                    max=11,
                    tooltip="The picture is divided into grid x grid cells with a colour each, so grid² entities fit. "
                    "Not looked at when a model is connected.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will see the colormap: its own colours are used. Connect it whenever "
                    "there is one; a model understands only the colours it was trained with.",
                ),
            ],
            outputs=[io.Image.Output("colormap", display_name="colormap", tooltip="The colormap, one picture.")],
        )

    @classmethod
    def execute(cls, masks: Tensor, grid: int, model: Any = None) -> io.NodeOutput:
        palette = palette_of(model, grid)
        found = as_masks(masks, "masks")
        count, most = int(found.flatten(1).any(dim=1).sum()), palette.grid**2
        if model is not None and count > most:
            raise ValueError(
                f"masks: {count} entities, but the model's palette has {most} colours: drop the smallest, for example "
                "by the min_area of Entity Mask Split"
            )
        return io.NodeOutput(image_of(palette.encode(found)))


def palette_of(model: Any = None, grid: int = 11) -> LocationAwarePalette:
    """The palette of this MODEL's checkpoint; without a model the default one with this grid."""
    if model is None:
        return LocationAwarePalette(grid)
    from .native import settings_of

    return settings_of(model).palette
