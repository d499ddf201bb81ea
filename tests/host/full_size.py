"""By hand, not in `make test`: original files of Stable Diffusion in their full size, with random weights.

    python -m tests.host.full_size make "Stable Diffusion 1" /tmp/sd1.safetensors --dtype fp16
    python -m tests.host.full_size parity /tmp/sd1.safetensors      native parts beside diffusers
    python -m tests.host.full_size memory /tmp/sd1.safetensors      what loading takes, in the file's own precision

The last two run inside ComfyUI's environment, as the tests do (COMFYUI_PATH and COMFYUI_PYTHON count). A file of Stable
Diffusion XL takes 14 GB of disk in fp32, and its parity about as much memory.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tests.host.processes import run_in_host
from tests.unigs import ldm_files

SHAPES = {
    "Stable Diffusion 1": ldm_files.stable_diffusion_1,
    "Stable Diffusion 2": ldm_files.stable_diffusion_2,
    "Stable Diffusion XL": ldm_files.stable_diffusion_xl,
}
DTYPES = {"fp16": ("F16", np.float16), "fp32": ("F32", np.float32)}


def make(family: str, file: Path, dtype: str) -> None:
    """Weights of the size that keeps a signal's, so that numbers neither vanish nor grow."""
    name, kind = DTYPES[dtype]
    shapes = SHAPES[family]()
    ldm_files.write(file, shapes, name)
    with file.open("rb") as stream:
        offset = 8 + int.from_bytes(stream.read(8), "little")
    rng = np.random.default_rng(0)
    for tensor, shape in shapes.items():
        weight = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            weight *= np.prod(shape[1:]) ** -0.5 if "embedding" not in tensor else 0.02
        else:
            weight = 1 + 0.1 * weight if tensor.endswith("weight") else 0.02 * weight
        place = np.memmap(file, kind, "r+", offset, shape or (1,))
        place[...] = weight
        place.flush()
        offset += place.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("family", choices=SHAPES)
    maker.add_argument("file", type=Path)
    maker.add_argument("--dtype", choices=DTYPES, default="fp32")
    for name in ("parity", "memory"):
        commands.add_parser(name).add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "make":
        make(options.family, options.file, options.dtype)
    elif options.command == "memory":
        print(json.dumps(run_in_host("memory.py", options.file.resolve()), indent=2))
    else:
        print(json.dumps(run_in_host("parity.py", "--full", options.file.resolve()), indent=2))


if __name__ == "__main__":
    main()
