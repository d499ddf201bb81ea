"""UniGS Loader: a checkpoint by name -> native MODEL, CLIP and VAE."""

import hashlib
import os
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..unigs.checkpoints import open_checkpoint
from .places import BUNDLED, KINDS, find_checkpoints, listed, locate
from .types import CATEGORY, check_choices

DTYPES = {"default": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class UniGSLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSLoader",
            display_name="UniGS Loader",
            category=CATEGORY,
            description="Loads a UniGS checkpoint: the model that paints a picture and the colormap of its entities, "
            "with its text encoder and VAE. A model of Stable Diffusion (1, 2, XL) is widened, to be trained.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[BUNDLED, *listed(checkpoints())],
                    default=BUNDLED,
                    tooltip="The small model that comes with these nodes; a UniGS pipeline folder or .safetensors "
                    "file in models/unigs; or a Stable Diffusion (1, 2, XL; best an inpainting one), a file in "
                    "models/checkpoints or a folder in models/diffusers: it is widened, but knows no colormaps yet.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="default",
                    tooltip="Precision of the model's weights. default: ComfyUI chooses for your device.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    display_name="MODEL",
                    tooltip="For the UniGS Sampler or UniGS Conditioning. LoRAs can be put in between.",
                ),
                io.Clip.Output("clip", display_name="CLIP", tooltip="The checkpoint's own text encoder."),
                io.Vae.Output(
                    "vae", display_name="VAE", tooltip="The checkpoint's own VAE, for pictures and colormaps."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None, dtype: str | None = None) -> bool | str:
        if checkpoint is not None:
            try:
                locate(checkpoint, checkpoints())
            except ValueError as error:
                return str(error)
        return check_choices({"dtype": (dtype, list(DTYPES))})

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, dtype: str | None = None) -> str:
        """Changes when a file of the checkpoint does, so that another export under the same name is loaded. Of a name
        that is behind a link the host knows itself when it changes."""
        if checkpoint is None:
            return ""
        place = locate(checkpoint, checkpoints())
        files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
        facts = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @classmethod
    def execute(cls, checkpoint: str, dtype: str) -> io.NodeOutput:
        from . import native  # the host's internals: a host that changed them still lists the other nodes

        return io.NodeOutput(*native.load(open_checkpoint(locate(checkpoint, checkpoints())), DTYPES[dtype]))


def register_model_folder() -> None:
    """Tells the host of models/unigs; paths that extra_model_paths.yaml gave it stay."""
    folder_paths.add_model_folder_path("unigs", os.path.join(folder_paths.models_dir, "unigs"))


def checkpoints() -> dict[str, dict[str, Path]]:
    """Kind -> name -> place; extra_model_paths.yaml adds to the folders of each kind."""
    return find_checkpoints({kind: folder_paths.get_folder_paths(kind) for kind in KINDS})
