"""Save Entities: a picture and its entity masks -> PNG layers, an indexed PNG and COCO's JSON in the output folder."""

import json
import os
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import io, ui
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .. import unigs
from ..unigs.entities import Entities
from ..unigs.saving import save_entities
from .types import CATEGORY, as_colormaps, image_batch, masks_and_pictures, one_score_each, size_of


class SaveEntities(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSSaveEntities",
            display_name="Save Entities",
            category=CATEGORY,
            description="Saves entities into ComfyUI's output folder: the picture, a transparent PNG an entity, all of "
            "them in one indexed PNG, an overlay, and a COCO data set (JSON). Empty masks are left out.",
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Image.Input("image", tooltip="The picture; as many as batches of masks, or one for all."),
                io.Mask.Input(
                    "masks",
                    tooltip="One mask an entity, as Dichotomy Decode gives them. They are numbered by area, largest "
                    "first; where two overlap, the smaller one lies on top.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="UniGS/entities",
                    tooltip="What the names of the files begin with, as in Save Image: a / makes a folder, and %year%, "
                    "%month%, %day%, %width% and %height% stand for what they say.",
                ),
                io.Float.Input(
                    "scores",
                    optional=True,
                    force_input=True,
                    tooltip="How sure each entity is, one number a mask, from Dichotomy Decode: written into the JSON. "
                    "Without it they are 1.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that was used: its name, palette and recommended settings are written down too.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(
        cls,
        image: list[Tensor],
        masks: list[Tensor],
        filename_prefix: list[str],
        scores: list[float] | None = None,
        model: list[Any] | None = None,
    ) -> io.NodeOutput:
        batches, pictures = masks_and_pictures(masks, image)
        sure = one_score_each(batches, scores)
        texts = {} if args.disable_metadata else _texts(cls.hidden, model[0] if model else None)
        png_info = PngInfo()
        for name, value in texts.items():
            png_info.add_text(name, json.dumps(value))
        shown = []
        for batch, picture, batch_scores in zip(batches, pictures, sure, strict=True):
            throw_exception_if_processing_interrupted()
            height, width = size_of(batch)
            # The host's own rules: variables, counters, and an error for a path that leads out of the output folder.
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                filename_prefix[0], folder_paths.get_output_directory(), width, height
            )
            name = f"{name}_{counter:05}_"
            pixels = Image.fromarray(as_colormaps(image_batch(picture[None]), "image")[0])
            pixels.save(os.path.join(folder, f"{name}.png"), pnginfo=png_info)
            written = save_entities(
                Entities.from_masks(batch.cpu().numpy(), batch_scores),
                pixels,
                os.path.join(folder, name),
                f"{name}.png",
                layers=True,
                info={"description": f"unigs {unigs.__version__}", **({"unigs": texts["unigs"]} if texts else {})},
                png_info=png_info,
            )
            files = [os.path.basename(path) for path in (*written["overlay"], *written["layer"])]
            shown += [ui.SavedResult(file, subfolder, io.FolderType.output) for file in files]
        return io.NodeOutput(ui=ui.SavedImages(shown))


def _texts(hidden: io.HiddenHolder, model: Any) -> dict[str, Any]:
    """What every file tells of how it was made: the host's `prompt` and `workflow`, and `unigs`, our part of it.

    `unigs` holds the version, the settings of all nodes of ours in the prompt, and those of the model's checkpoint.
    """
    prompt = hidden.prompt or {}
    settings = {
        node: {
            "class_type": spec["class_type"],
            **{name: value for name, value in spec["inputs"].items() if not isinstance(value, list)},
        }
        for node, spec in prompt.items()
        if spec["class_type"].startswith("UniGS")
    }
    ours: dict[str, Any] = {"version": unigs.__version__, "nodes": settings}
    if model is not None:
        from .native import settings_of

        own = settings_of(model)
        defaults = {task.value: values for task, values in own.task_defaults.items()}
        ours["model"] = {"name": own.name, "palette": own.palette.to_config(), "task_defaults": defaults}
    return {**({"prompt": prompt} if prompt else {}), **(hidden.extra_pnginfo or {}), "unigs": ours}
