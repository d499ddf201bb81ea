"""Start-up of the COCO loaders, beside `pycocotools`: `python -m benchmarks.bench_datasets`

Writes an instances and a panoptic file of the size of COCO 2017 train (118 287 pictures, 860 001 objects, 1.3 million
segments; 0.6 GB in a temporary folder), and opens each in a process of its own, ours and the peer's. The peer is
pycocotools' `COCO(file)`; it cannot open panoptic files, where it is `json.load`, as panopticapi does. The ratio is the
peer's to ours in the same run. `--scale 0.1` writes a tenth.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

PICTURES, OBJECTS, SEGMENTS = 118_287, 860_001, 1_310_000
MEAN_POINTS = 26  # of a polygon: the file is then as large as the original, 0.45 GB
PICTURE = (
    '{"license": 3,"file_name": "%012d.jpg","coco_url": "http://images.cocodataset.org/train2017/%012d.jpg","height": '
    '480,"width": 640,"date_captured": "2013-11-14 11:18:45","flickr_url": '
    '"http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg","id": %d}'
)
OBJECT = (
    '{"segmentation": [[%s]],"area": 702.1057499999998,"iscrowd": 0,"image_id": %d,"bbox": [473.07,395.93,38.65,28.67],'
    '"category_id": %d,"id": %d}'
)
SEGMENT = '{"id": %d, "category_id": %d, "iscrowd": 0, "bbox": [%d, 195, 132, 256], "area": %d}'


def write_instances(path: Path, scale: float) -> None:
    """An instances file of COCO's size times `scale`."""
    rng = np.random.default_rng(0)
    polygons = []
    for _ in range(1000):  # used again and again: nobody looks at what they show
        angles = np.linspace(0, 2 * np.pi, 4 + int(rng.exponential(MEAN_POINTS - 4)), endpoint=False)
        points = np.stack([320 + 200 * np.cos(angles), 240 + 150 * np.sin(angles)], axis=1) + rng.uniform(-40, 40, 2)
        polygons.append(",".join(f"{value:.2f}" for value in points.ravel()))
    pictures = int(PICTURES * scale)
    with path.open("w") as file:
        file.write('{"images": [' + ",".join(PICTURE % (i, i, i) for i in range(pictures)) + '],"annotations": [')
        for i in range(int(OBJECTS * scale)):
            file.write("," * (i > 0) + OBJECT % (polygons[i % 1000], rng.integers(pictures), i % 80 + 1, i + 1))
        categories = [{"supercategory": "any", "id": i + 1, "name": f"kind {i}"} for i in range(80)]
        file.write(f'],"categories": {json.dumps(categories)}}}')


def write_panoptic(path: Path, scale: float) -> None:
    """A panoptic file of COCO's size times `scale`; its PNGs are not needed to open it."""
    rng = np.random.default_rng(0)
    pictures = int(PICTURES * scale)
    with path.open("w") as file:
        file.write('{"images": [' + ",".join(PICTURE % (i, i, i) for i in range(pictures)) + '],"annotations": [')
        for i in range(pictures):
            numbers = rng.integers(1, 2**24, rng.poisson(SEGMENTS / PICTURES)).tolist()
            segments = ", ".join(
                SEGMENT % (number, number % 133 + 1, number % 640, number % 9999) for number in numbers
            )
            file.write(
                "," * (i > 0) + f'{{"segments_info": [{segments}], "file_name": "{i:012d}.png", "image_id": {i}}}'
            )
        categories = [
            {"id": i + 1, "name": f"kind-{i}-merged", "isthing": i % 2, "color": [1, 2, 3]} for i in range(133)
        ]
        file.write(f'],"categories": {json.dumps(categories)}}}')
    path.with_suffix("").mkdir()


def opener(kind: str, path: Path) -> Callable[[], object]:
    """What is timed; imports are not."""
    if kind == "coco":
        from pycocotools.coco import COCO

        return lambda: COCO(str(path))
    if kind == "json":
        return lambda: json.loads(path.read_text())
    from training.datasets.coco import CocoInstances, CocoPanoptic

    return lambda: (CocoPanoptic if kind == "panoptic" else CocoInstances)(path, path.parent)


def measure(kind: str, path: Path) -> None:
    """Print seconds of the wall and of the processor, and the largest memory of the process in GB, as JSON."""
    opening = opener(kind, path)
    wall, cpu = time.perf_counter(), time.process_time()
    with redirect_stdout(StringIO()):
        data = opening()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
    del data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the files, as a share of COCO's")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each; the fastest counts")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure[0], Path(options.measure[1]))
    print("| file | loader | wall s | cpu s | memory GB | ratio: time | ratio: memory |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, write, peer in (("instances", write_instances, "coco"), ("panoptic", write_panoptic, "json")):
            path = Path(folder) / f"{name}_train2017.json"
            write(path, options.scale)
            found = {}
            for kind in (name, peer):
                command = [sys.executable, "-m", "benchmarks.bench_datasets", "--measure", kind, str(path)]
                runs = [json.loads(subprocess.check_output(command)) for _ in range(options.repeats)]
                found[kind] = np.min(runs, axis=0)
            for kind, title in ((name, "ours"), (peer, "`COCO(file)`" if peer == "coco" else "`json.load`")):
                ratios = found[peer][[1, 2]] / found[kind][[1, 2]]
                numbers = " | ".join(f"{value:.2f}" for value in (*found[kind], *ratios))
                print(f"| {name}, {path.stat().st_size / 1e9:.2f} GB | {title} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
