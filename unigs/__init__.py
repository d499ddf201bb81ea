"""UniGS: one diffusion model that paints a picture and the colormap of its entities.

Reading order: `pipeline` (the whole system in one call), then `tasks`, `conditions`, `unet`, `palette`,
`coarse_mask`, `boxes`, `dichotomy` (which rests on `splitting`, `regions`, `parts` and `edges`), `entities`, `saving`,
`checkpoints`, `visualize`.

Shape letters used in every file: B batch, N entities, H W pixels, h w latent pixels. Pictures are float [0, 1] BCHW
inside the engine ([-1, 1] exists only at the VAE), masks are bool, boxes are half-open xyxy pixels, and a coarse mask
is True where the model has to fill.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# The function hides the sub-module of its name. Were it imported later, any `from .coarse_mask import ...` inside the
# package would put the module back in its place.
from .coarse_mask import coarse_mask as coarse_mask

if TYPE_CHECKING:
    from . import visualize
    from .dichotomy import decode_colormap, decode_colormaps
    from .entities import Entities
    from .palette import LocationAwarePalette
    from .pipeline import UniGSOutput, UniGSPipeline
    from .tasks import Task
    from .unet import widen_unet

__version__ = "0.1.0"

_HOME = {
    "Task": "tasks",
    "LocationAwarePalette": "palette",
    "decode_colormap": "dichotomy",
    "decode_colormaps": "dichotomy",
    "Entities": "entities",
    "widen_unet": "unet",
    "UniGSPipeline": "pipeline",
    "UniGSOutput": "pipeline",
}
__all__ = [
    "Entities",
    "LocationAwarePalette",
    "Task",
    "UniGSOutput",
    "UniGSPipeline",
    "coarse_mask",
    "decode_colormap",
    "decode_colormaps",
    "visualize",
    "widen_unet",
]


def __getattr__(name: str):
    if name == "visualize":
        return import_module(".visualize", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
