"""UniGS Loader: a checkpoint by name -> native MODEL, CLIP and VAE."""

import json
import os
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from .types import CATEGORY, check_choices

BUNDLED = "bundled"
# Folders of models/ in which pipeline folders are looked for; extra_model_paths.yaml adds to both.
MODEL_FOLDERS = ("unigs", "diffusers")
DTYPES = {"default": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class UniGSLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSLoader",
            display_name="UniGS Loader",
            category=CATEGORY,
            description="Loads a UniGS checkpoint: the model that paints a picture and the colormap of its entities, "
            "with its text encoder and VAE.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[BUNDLED, *find_checkpoints()],
                    default=BUNDLED,
                    tooltip="The small model that comes with these nodes, or a UniGS pipeline folder in models/unigs "
                    "or models/diffusers.",
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
                    "model", display_name="MODEL", tooltip="For the UniGS Sampler. LoRAs can be put in between."
                ),
                io.Clip.Output("clip", display_name="CLIP", tooltip="The checkpoint's own text encoder."),
                io.Vae.Output(
                    "vae", display_name="VAE", tooltip="The checkpoint's own VAE, for pictures and colormaps."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None, dtype: str | None = None) -> bool | str:
        known = [BUNDLED, *find_checkpoints()]
        return check_choices({"checkpoint": (checkpoint, known), "dtype": (dtype, list(DTYPES))})

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, dtype: str) -> tuple[str, str, float]:
        """Changes when a file of the checkpoint is written, so that a newer export under the same name is loaded."""
        files = [file for file in locate(checkpoint).rglob("*") if file.is_file()]
        return checkpoint, dtype, max((file.stat().st_mtime for file in files), default=0.0)

    @classmethod
    def execute(cls, checkpoint: str, dtype: str) -> io.NodeOutput:
        from . import native  # the host's internals: a host that changed them still lists the other nodes

        return io.NodeOutput(*native.load(locate(checkpoint), DTYPES[dtype]))


def register_model_folder() -> None:
    """Tells the host of models/unigs; paths that extra_model_paths.yaml gave it stay."""
    folder_paths.add_model_folder_path("unigs", os.path.join(folder_paths.models_dir, "unigs"))


def find_checkpoints() -> dict[str, Path]:
    """Name -> folder of every UniGS pipeline folder in the host's model folders; of two namesakes the first."""
    found: dict[str, Path] = {}
    for kind in MODEL_FOLDERS:
        for root in folder_paths.get_folder_paths(kind):
            for folder, below, files in os.walk(root, followlinks=True):
                if "model_index.json" in files:
                    below.clear()  # a pipeline holds components, not pipelines
                    if _is_unigs(Path(folder)):
                        found.setdefault(Path(folder).relative_to(root).as_posix(), Path(folder))
    return dict(sorted(found.items()))


def locate(checkpoint: str) -> Path:
    """The folder behind a name in the list. Raises ValueError if it is gone."""
    if checkpoint == BUNDLED:
        from ..unigs.checkpoints import bundled_model_dir

        folder = bundled_model_dir()
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"checkpoint: the bundled model is missing from {folder}: install these nodes again")
        return folder
    found = find_checkpoints()
    if checkpoint not in found:
        names = ", ".join([BUNDLED, *found])
        raise ValueError(f"checkpoint: {checkpoint!r} is not in models/unigs or models/diffusers; there are: {names}")
    return found[checkpoint]


def _is_unigs(folder: Path) -> bool:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return index.get("_class_name") == "UniGSPipeline"
