"""Turn what was trained into a pipeline folder that UniGSPipeline and UniGSLoader open."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unigs.pipeline import UniGSPipeline


def save_pipeline(pipeline: UniGSPipeline, tokenizer: Path, folder: Path) -> None:
    """Write half-precision safetensors; the folder is put in place only when it is complete.

    Args:
        tokenizer: folder with vocab.json and merges.txt, which an older transformers needs beside tokenizer.json.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    pipeline.save_pretrained(scratch, safe_serialization=True)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, scratch / "tokenizer" / name)
    # notes of no use elsewhere: where a part was read from, and what AutoencoderTiny warns about when read again
    for config in [scratch / "model_index.json", *scratch.glob("*/config.json")]:
        settings = json.loads(config.read_text())
        unwanted = {"_name_or_path"} | ({"block_out_channels"} if config.parent.name == "vae" else set())
        config.write_text(json.dumps({k: v for k, v in settings.items() if k not in unwanted}, indent=2) + "\n")
    for path in scratch.rglob("*.safetensors"):
        tensors = {
            name: value.half() if value.dtype == torch.float32 else value for name, value in load_file(path).items()
        }
        save_file(tensors, path, metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
