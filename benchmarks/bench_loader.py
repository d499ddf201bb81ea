"""Training examples a second and core from files of COCO's shape: `OMP_NUM_THREADS=1 python -m benchmarks.bench_loader`

Writes pictures of 640 x 480, nearly as large as COCO's (JPEG, 150 KB), with 7 objects each, into a temporary folder,
and makes examples of 512 x 512 of them in two ways: the same pictures and tasks, the tasks in their ratios. What is
timed is the CPU time of this process until the tensors of an example are there. In each round both loops make all
examples, and a ratio is the peer's time to ours in that round; the median over the rounds counts.

Ours is `JointExamples`, as the trainer takes it: pictures in uint8, which become floats on the device.

The peer is the straightforward loop, what one writes first from the description of the unofficial implementation. The
annotations are parsed once, by pycocotools. Of each example the picture is opened by PIL and every annotation that is
no crowd is decoded to a mask of the whole picture; the entities of the example are drawn; their colours are those of
the centres of mass, by argwhere, painted over the whole picture; picture, colormap and each mask are resized by PIL,
cropped and mirrored; each entity gets a coarse mask on a canvas of its own, its curves evaluated point by point;
picture, colormap and control picture become float tensors in [-1, 1].
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from benchmarks.bench_masks import blob_point_by_point, encode_whole_pictures
from training.datasets.coco import CocoInstances
from training.datasets.mixture import Mixture, Source
from training.geometry import Geometry
from training.joint import MAX_ENTITIES, JointExamples
from training.latents import Batch, pixel_tensors
from unigs.palette import LocationAwarePalette
from unigs.tasks import Task, join_nouns

OBJECTS = 7.3  # of a picture, on average, as in COCO
MEAN_POINTS = 26  # of a polygon, likewise
KINDS = 80


def write_data(folder: Path, count: int, size: tuple[int, int]) -> tuple[Path, Path]:
    """`instances.json` and its folder of pictures (H, W); every tenth picture has a crowd. Always the same."""
    rng = np.random.default_rng(0)
    height, width = size
    pictures = folder / "pictures"
    pictures.mkdir()
    images, annotations = [], []
    for number in range(count):
        name = f"{number:012d}.jpg"
        picture = texture(rng, size)
        for i in range(max(1, int(rng.poisson(OBJECTS)))):
            polygon = outline(rng, size)
            mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(cast(Any, [polygon]), height, width))).astype(
                bool
            )
            picture[mask] = picture[mask] // 2 + rng.integers(0, 128, 3, np.uint8)
            kind = 1 + (number + int(rng.integers(4))) % KINDS  # of few kinds, so that some are there twice
            crowd = number % 10 == 0 and i == 0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kind,
                    "iscrowd": int(crowd),
                    "segmentation": {"size": [height, width], "counts": runs(mask)} if crowd else [polygon],
                    "area": int(mask.sum()),
                    "bbox": [0, 0, width, height],
                }
            )
        Image.fromarray(picture).save(pictures / name, quality=90)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    categories = [{"id": i + 1, "name": f"kind {i + 1}"} for i in range(KINDS)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path, pictures


def texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: noise of all scales, the coarser the stronger."""
    total = np.zeros((*size, 3), np.float32)
    for scale, strength in ((64, 60), (16, 40), (4, 35), (2, 40), (1, 16)):
        small = rng.integers(0, 256, (size[0] // scale + 1, size[1] // scale + 1, 3), np.uint8)
        large = Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        total += (np.asarray(large, np.float32) / 127.5 - 1) * strength
    return (128 + total).clip(0, 255).astype(np.uint8)


def outline(rng: np.random.Generator, size: tuple[int, int]) -> list[float]:
    """A polygon x, y, x, y, ...: star-shaped around a random point, its radius from 8 pixels to a third of the side."""
    height, width = size
    radius = np.exp(rng.uniform(np.log(8), np.log(max(9, min(size) / 3))))
    angles = np.sort(rng.uniform(0, 2 * np.pi, 6 + int(rng.exponential(MEAN_POINTS - 6))))
    distance = radius * rng.uniform(0.7, 1.1, len(angles))
    x = (rng.uniform(0, width) + distance * np.cos(angles)).clip(0, width)
    y = (rng.uniform(0, height) + distance * np.sin(angles)).clip(0, height)
    return np.stack([x, y], axis=1).round(2).ravel().tolist()


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs down the columns, the first of zeros."""
    values = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(values, prepend=False, append=not values[-1]))
    return np.diff(changes, prepend=0).tolist()


class StraightforwardLoop:
    """Examples as one writes them first; see above. `pictures` are numbered as in the file."""

    def __init__(self, annotations: Path, pictures: Path, side: int):
        with redirect_stdout(StringIO()):
            self.coco = COCO(str(annotations))
        self.image_ids = self.coco.getImgIds()
        self.names = {row["id"]: row["name"] for row in self.coco.loadCats(self.coco.getCatIds())}
        self.pictures, self.side = pictures, side
        self.palette = LocationAwarePalette()

    def example(self, number: int, task: Task, rng: np.random.Generator) -> dict[str, Any]:
        """`image`, `colormap`, `control` (3, S, S) float [-1, 1], `mask` (1, S, S) float, `prompt`."""
        image_id = self.image_ids[number]
        row = self.coco.loadImgs(image_id)[0]
        image = Image.open(self.pictures / row["file_name"]).convert("RGB")
        annotations = self.coco.loadAnns(self.coco.getAnnIds(image_id, iscrowd=False))
        masks = [self.coco.annToMask(annotation) for annotation in annotations]
        entities = [
            (mask, self.names[a["category_id"]]) for mask, a in zip(masks, annotations, strict=True) if mask.any()
        ]
        if task is Task.REFERRING:
            asked = entities[rng.integers(len(entities))][1]
            entities = [entity for entity in entities if entity[1] == asked]
        elif task is not Task.ENTITY:
            count = rng.integers(1, min(len(entities), MAX_ENTITIES) + 1)
            entities = [entities[i] for i in rng.permutation(len(entities))[:count]]

        colormap = encode_whole_pictures(np.stack([mask for mask, _ in entities]).astype(bool), self.palette)

        scale = self.side / min(image.size)
        wide, high = round(image.width * scale), round(image.height * scale)
        left, top = (int(rng.integers(extent - self.side + 1)) for extent in (wide, high))
        mirror = rng.random() < 0.5

        def cut(picture: Image.Image, resample: Image.Resampling) -> Image.Image:
            resized = picture.resize((wide, high), resample).crop((left, top, left + self.side, top + self.side))
            return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else resized

        image = cut(image, Image.Resampling.BILINEAR)
        colormap = cut(Image.fromarray(colormap), Image.Resampling.NEAREST)
        cropped = [np.array(cut(Image.fromarray(mask), Image.Resampling.NEAREST)) > 0 for mask, _ in entities]

        coarse = np.ones((self.side, self.side), bool)
        if task in (Task.INPAINTING, Task.REFERRING):
            coarse = np.zeros((self.side, self.side), bool)
            for mask in cropped:
                if mask.any():
                    coarse |= self.coarse_mask(mask, rng)

        hole = np.array(image)
        hole[coarse] = 127
        control = {"image": image, "colormap": colormap, "image with hole": Image.fromarray(hole)}[task.spec.control]
        return {
            "image": normalised(image),
            "colormap": normalised(colormap),
            "control": normalised(control),
            "mask": torch.from_numpy(coarse).float()[None],
            "prompt": task.spec.prompt(join_nouns([name for _, name in entities])),
        }

    def coarse_mask(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Algorithm 1 for one entity (S, S) bool."""
        rows, columns = np.where(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        free = [box[0], box[1], self.side - box[2], self.side - box[3]]
        outwards = [int(rng.integers(0, int(0.4 * space) + 1)) for space in free]
        x1, y1, x2, y2 = extended = [
            box[0] - outwards[0],
            box[1] - outwards[1],
            box[2] + outwards[2],
            box[3] + outwards[3],
        ]
        if rng.random() < 0.5:
            return blob_point_by_point(box, extended, mask.shape, int(rng.integers(2**31)))
        region = np.zeros(mask.shape, bool)
        region[y1:y2, x1:x2] = True
        return region


def normalised(picture: Image.Image) -> torch.Tensor:
    """(3, H, W) float [-1, 1]."""
    return (torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255 - 0.5) / 0.5


class Parts:
    """CPU seconds of named functions while they are watched; what one of them spends in another counts there alone."""

    def __init__(self, functions: dict[str, str]):
        self.functions, self.seconds = functions, dict.fromkeys(functions.values(), 0.0)
        self.inside = [0.0]

    @contextmanager
    def watch(self) -> Iterator[None]:
        with ExitStack() as stack:
            for path, part in self.functions.items():
                stack.enter_context(patch(path, self._timed(resolve_name(path), part)))
            yield

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            self.inside.append(0.0)
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                taken = time.process_time() - start
                self.seconds[part] += taken - self.inside.pop()
                self.inside[-1] += taken

        return run


PARTS = {
    "training.datasets.coco.read_picture": "JPEG",
    "training.datasets.coco.CocoMasks.record": "annotations",
    "training.datasets.paint": "masks",
    "training.geometry.crop_image": "picture cut and resized",
    "training.geometry.Geometry.__call__": "masks cut",
    "unigs.palette.LocationAwarePalette.encode": "colours",
    "training.joint.coarse_mask_of_masks": "coarse mask",
    "training.joint.make_example": "rest",
}


@dataclass
class Loaders:
    """Both loops over the same files."""

    ours: JointExamples
    peer: StraightforwardLoop

    @classmethod
    def over(cls, annotations: Path, pictures: Path, side: int) -> "Loaders":
        mixture = Mixture([Source(CocoInstances(annotations, pictures))])
        ours = JointExamples(mixture, LocationAwarePalette(), geometry=Geometry((side, side)))
        return cls(ours, StraightforwardLoop(annotations, pictures, side))

    def make_ours(self, index: int) -> Batch:
        return pixel_tensors(self.ours[index])

    def make_peers(self, index: int) -> dict[str, Any]:
        task, _, number = self.ours.mixture.draw(index)
        return self.peer.example(number, task, np.random.default_rng(index))

    def measure(self, count: int) -> dict[str, np.ndarray]:
        """Task, or "all" -> mean CPU seconds of an example, ours and the peer's (2,). First all of ours are made."""
        seconds = np.zeros((2, count))
        for loop, make in enumerate((self.make_ours, self.make_peers)):
            for index in range(count):
                start = time.process_time()
                make(index)
                seconds[loop, index] = time.process_time() - start
        tasks = np.array([self.ours.mixture.draw(index)[0].value for index in range(count)])
        means = {task.value: seconds[:, tasks == task.value].mean(axis=1) for task in Task if task.value in tasks}
        return means | {"all": seconds.mean(axis=1)}

    def measure_parts(self, count: int) -> dict[str, float]:
        """Part -> mean CPU seconds of it in an example of ours."""
        parts = Parts(PARTS)
        with parts.watch():
            for index in range(count):
                self.make_ours(index)
        return {part: seconds / count for part, seconds in parts.seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100, help="and examples of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--side", type=int, default=512, help="of an example, pixels (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        annotations, pictures = write_data(Path(folder), options.pictures, (480, 640))
        loaders = Loaders.over(annotations, pictures, options.side)
        loaders.measure(10)  # what is slow only the first time
        rounds = [loaders.measure(options.pictures) for _ in range(options.rounds)]
        parts = [loaders.measure_parts(options.pictures) for _ in range(options.rounds)]
        kilobytes = np.mean([path.stat().st_size for path in pictures.iterdir()]) / 1000
    print(f"{options.pictures} pictures of {kilobytes:.0f} KB, {options.rounds} rounds\n")
    print("| task | ours, examples a second and core | straightforward loop | ratio (least to most) |")
    print("|---|---|---|---|")
    for name in rounds[0]:
        ours, peer = np.median([found[name] for found in rounds], axis=0)
        ratios = [found[name][1] / found[name][0] for found in rounds]
        spread = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {1 / ours:.0f} | {1 / peer:.0f} | {spread} |")
    middle = {part: float(np.median([found[part] for found in parts])) for part in parts[0]}
    print("\n| part of ours | ms | share |\n|---|---|---|")
    for part, seconds in middle.items():
        print(f"| {part} | {1000 * seconds:.2f} | {100 * seconds / sum(middle.values()):.0f} % |")


if __name__ == "__main__":
    main()
