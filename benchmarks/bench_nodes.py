"""What the nodes cost: ComfyUI's own KSampler on a UniGS MODEL, beside the same on a plain inpainting model.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_nodes --cpu-time

Both have a UNet of Stable Diffusion 1.5 with the same random weights; UniGS has 13 input channels instead of 9, 8
output channels instead of 4, and a task. They sample in turns, in one process of ComfyUI's environment (`make setup`
fetches one; COMFYUI_PATH and COMFYUI_PYTHON count), and the ratio of each round is taken. What UniGS Conditioning
prepares before is timed apart: it is done once, whatever the number of steps. `--cpu-time` with one thread is steadier
than the time of day on a CPU that has other things to do, and so is memory not given back: on Linux with
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=99999999999.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from tests.host.processes import run_in_host
from tests.unigs import ldm_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of the picture in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="a sampling (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=100, help="samplings of each (default: %(default)s)")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance scale; 1 is without (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the process instead of the time of day")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = ldm_files.write(Path(folder) / "sd1.safetensors", ldm_files.stable_diffusion_1())
        settings = (options.size, options.steps, options.rounds, options.cfg, options.cpu_time)
        found = run_in_host("cost.py", file, *settings)
    times = found["times"]
    ratios = sorted(ours / theirs for ours, theirs in zip(times["UniGS"], times["inpainting"], strict=True))
    print(
        f"Stable Diffusion 1.5 UNet, random, fp32, {options.size} x {options.size}, {options.steps} steps, "
        f"cfg {options.cfg:g}, {options.rounds} rounds{', CPU time' if options.cpu_time else ''}\n"
    )
    print("| KSampler on | seconds a sampling (median) |\n|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.median(taken):.2f} |")
    quarter = len(ratios) // 4
    print(
        f"\nratio of a round: median {statistics.median(ratios):.4f}, half of them between {ratios[quarter]:.4f} and "
        f"{ratios[-1 - quarter]:.4f}; preparing took {found['preparing']:.2f} s"
    )


if __name__ == "__main__":
    main()
