"""Runs inside ComfyUI's own environment: what loading a checkpoint takes, in the precision of its file.

`python memory.py REPO cpu-torch|any-torch FILE` prints the growth of the process' peak, relative to the file, as JSON.
"""

import json
import resource
import sys
from pathlib import Path

from inside import begin

if __name__ == "__main__":
    file = Path(begin(sys.argv)[0])
    import torch
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint
    from transformers import CLIPTokenizer  # noqa: F401  takes memory whatever is loaded

    def growth() -> float:
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / file.stat().st_size

    with torch.inference_mode():
        checkpoint = open_checkpoint(file)
        dtype = checkpoint.weights("unet")["out.0.weight"].dtype
        before = 0
        before = growth() * file.stat().st_size
        model, clip, vae = native.load(checkpoint, dtype)
        report = {"dtype": str(dtype), "loaded": growth()}
        touched = [weight.sum() for weight in model.model.diffusion_model.parameters()]
        report |= {"touched": growth()}
        print(json.dumps(report))
