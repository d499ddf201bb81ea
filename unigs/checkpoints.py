"""Where checkpoints lie and what they are. Offline, safetensors only."""

import json
from pathlib import Path


def bundled_model_dir() -> Path:
    """Folder of the small model that comes with the project (a UniGSPipeline)."""
    return Path(__file__).parent / "models" / "unigs-tiny"


def check_pipeline_dir(folder: Path | str, class_name: str) -> Path:
    """The folder, if a diffusers pipeline with safetensors weights lies in it.

    Args:
        class_name: prefix of the `_class_name` that model_index.json must give, like "UniGSPipeline".

    Raises:
        FileNotFoundError: nothing is there, or no pipeline.
        ValueError: a pipeline of another class, or weights only as pickles, which are never opened.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise FileNotFoundError(
            f"{str(folder)!r} {what}: expected the folder of a saved {class_name}, with a model_index.json"
        )
    index = folder / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"no model_index.json in {str(folder)!r}: expected the folder of a saved {class_name}")
    found = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if not str(found).startswith(class_name):
        raise ValueError(f"{str(folder)!r} holds a {found}, expected a {class_name}")
    if not any((folder / "unet").glob("*.safetensors")):
        raise ValueError(
            f"no .safetensors weights in {str(folder / 'unet')!r}: save the pipeline with safe_serialization=True"
        )
    return folder
