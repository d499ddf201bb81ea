"""One truth in memory, and it written in the format of every data set. The writers share no code with the loaders."""

import csv
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

# id, name, isthing; the ids have gaps as COCO's have
CATEGORIES = [
    (1, "person", 1),
    (18, "dog", 1),
    (90, "toothbrush", 1),
    (119, "flower", 0),
    (199, "wall-other-merged", 0),
]
OPEN_IMAGES_LABELS = {"person": "/m/01g317", "dog": "/m/0bt9lr", "toothbrush": "/m/012xff"}


@dataclass
class Entity:
    """Rectangles (top, left, bottom, right), half-open, minus others: what of it can be seen is in `Truth.masks`."""

    name: str
    rectangles: list[tuple[int, int, int, int]]
    holes: list[tuple[int, int, int, int]] = field(default_factory=list)
    sentences: tuple[str, ...] = ()

    @property
    def is_thing(self) -> bool:
        return next(bool(thing) for _, name, thing in CATEGORIES if name == self.name)

    def whole(self, size: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(size, bool)
        for value, rectangles in ((True, self.rectangles), (False, self.holes)):
            for top, left, bottom, right in rectangles:
                mask[top:bottom, left:right] = value
        return mask


@dataclass
class Truth:
    """A picture. `entities` lie back to front, larger ones first."""

    image_id: int
    size: tuple[int, int]
    entities: list[Entity]
    exif: int = 1
    split: str = "train"

    @property
    def stem(self) -> str:
        return f"{self.image_id:012d}"

    @property
    def things(self) -> list[Entity]:
        return [entity for entity in self.entities if entity.is_thing]

    @property
    def image(self) -> np.ndarray:
        y, x = np.mgrid[: self.size[0], : self.size[1]]
        return np.stack([255 * x / self.size[1], 255 * y / self.size[0], 0 * x + 60], axis=2).astype(np.uint8)

    def masks(self, entities: list[Entity]) -> np.ndarray:
        """(N, H, W) bool: what can be seen of each."""
        masks = np.zeros((len(entities), *self.size), bool)
        for i, entity in enumerate(entities):
            masks[:i] &= ~entity.whole(self.size)
            masks[i] = entity.whole(self.size)
        return masks


TRUTH = [
    Truth(
        139,
        (51, 67),
        [
            Entity("wall-other-merged", [(0, 0, 20, 67)]),
            Entity("person", [(22, 3, 50, 30)], holes=[(30, 10, 40, 20)], sentences=("the ring", "left one")),
            Entity("dog", [(25, 40, 35, 50), (40, 55, 49, 65)], sentences=("dog behind the pole",)),  # in two parts
            Entity("dog", [(24, 45, 33, 53)]),  # in front of the first dog
            Entity("flower", [(5, 5, 9, 9)]),  # in front of the wall
        ],
    ),
    Truth(285, (63, 41), [Entity("toothbrush", [(7, 9, 60, 20)], sentences=("the brush",))], exif=6),
    Truth(632, (33, 33), []),
    Truth(
        724,
        (83, 105),
        [Entity("dog", [(6 * i + 1, 8 * j + 1, 6 * i + 6, 8 * j + 7)]) for i in range(13) for j in range(13)],
    ),
    Truth(785, (45, 77), [Entity("person", [(4, 8, 40, 60)], sentences=("a tester",))], split="testA"),
]


def found(record: Any) -> list[tuple[str, bool, tuple[str, ...], bytes]]:
    """What a record says about its entities, in an order of its own."""
    masks = record.masks
    assert masks.shape == (len(record.labels), *record.size) and masks.dtype == bool
    rows = zip(record.labels, record.is_thing.tolist(), record.phrases, masks, strict=True)
    return sorted((label, thing, phrases, mask.tobytes()) for label, thing, phrases, mask in rows)


def expected(truth: Truth, entities: list[Entity], phrases: bool = False, stuff: bool = True) -> list[Any]:
    """The same of the truth. `stuff`: whether the format can say what is stuff."""
    return sorted(
        (
            entity.name.removesuffix("-other-merged"),
            entity.is_thing or not stuff,
            entity.sentences if phrases else (),
            mask.tobytes(),
        )
        for entity, mask in zip(entities, truth.masks(entities), strict=True)
    )


def check_image(record: Any, truth: Truth, path: Path, turned: int = 0) -> None:
    """The picture is that of the file (lossy), turned upright: `turned` quarters counterclockwise."""
    with Image.open(path) as file:
        stored = np.asarray(file.convert("RGB"))
    assert record.size == truth.size
    assert record.image.dtype == np.uint8
    assert np.array_equal(record.image, np.rot90(stored, turned))
    assert np.abs(record.image.astype(int) - truth.image).mean() < 4


def write_pictures(folder: Path, names: dict[int, str], rotations: dict[int, int] | None = None) -> Path:
    """JPEGs by image id. One with EXIF orientation 6 is stored lying on its side; `rotations` in degrees likewise."""
    for truth in TRUTH:
        if truth.image_id in names:
            path = folder / names[truth.image_id]
            path.parent.mkdir(parents=True, exist_ok=True)
            exif, stored = Image.Exif(), truth.image
            degrees = (rotations or {}).get(truth.image_id, 0)
            if degrees:
                stored = np.rot90(stored, -degrees // 90)
            elif truth.exif == 6:
                stored, exif[0x0112] = np.rot90(stored), 6
            Image.fromarray(np.ascontiguousarray(stored)).save(path, quality=95, exif=exif)
    return folder


def runs(mask: np.ndarray) -> dict[str, Any]:
    """An uncompressed RLE: runs down the columns, the first of zeros."""
    counts, last = [0], False
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def packed(mask: np.ndarray) -> dict[str, Any]:
    """A compressed RLE as JSON has it."""
    rle = coco_mask.frPyObjects(runs(mask), *mask.shape)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def segmentation(entity: Entity, size: tuple[int, int]) -> Any:
    """Polygons; for one with a hole, which they cannot say, runs."""
    if entity.holes:
        return runs(entity.whole(size))
    return [[left, top, right, top, right, bottom, left, bottom] for top, left, bottom, right in entity.rectangles]


def write_json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def images(names: dict[int, str]) -> list[dict[str, Any]]:
    return [
        {"id": t.image_id, "width": t.size[1], "height": t.size[0], "file_name": names[t.image_id]}
        for t in TRUTH
        if t.image_id in names
    ]


def categories(only_things: bool) -> list[dict[str, Any]]:
    return [
        {"id": number, "name": name, "supercategory": "any", "isthing": thing}
        for number, name, thing in CATEGORIES
        if thing or not only_things
    ]


def category_id(name: str) -> int:
    return next(number for number, other, _ in CATEGORIES if other == name)


def write_instances(folder: Path, prefix: str = "") -> tuple[Path, Path, dict[int, str]]:
    """`instances.json`, its folder of pictures and their names. The first picture has a crowd and two useless masks."""
    names = {truth.image_id: f"{prefix}{truth.stem}.jpg" for truth in TRUTH}
    rows = []
    for truth in TRUTH:
        for entity in truth.things:
            row = {"segmentation": segmentation(entity, truth.size), "iscrowd": 0, "image_id": truth.image_id}
            rows.append({**row, "category_id": category_id(entity.name), "area": 1.5, "bbox": [1, 2, 3, 4]})
    size = TRUTH[0].size
    crowd = {"segmentation": runs(np.ones(size, bool)), "iscrowd": 1, "image_id": 139, "category_id": 90}
    nothing = {"segmentation": [[5, 5, 5, 5, 5, 5], [1, 2, 3, 4]], "iscrowd": 0, "image_id": 139, "category_id": 1}
    rows = [*rows[::-1], crowd, nothing, {**nothing, "segmentation": []}]  # not in the order of the pictures
    rows = [{**row, "id": 1000 + i} for i, row in enumerate(rows)]
    document = {"info": {}, "images": images(names), "annotations": rows, "categories": categories(True)}
    path = write_json(folder / "annotations" / "instances_train2017.json", document)
    return path, write_pictures(folder / "train2017", names), names


def write_panoptic(folder: Path) -> tuple[Path, Path, dict[int, str]]:
    """`panoptic_train2017.json` with the folder of PNGs beside it, the folder of pictures and their names."""
    names = {truth.image_id: f"{truth.stem}.jpg" for truth in TRUTH}
    rows = []
    png_folder = folder / "annotations" / "panoptic_train2017"
    png_folder.mkdir(parents=True)
    for truth in TRUTH:
        ids = np.zeros(truth.size, int)
        segments = []
        for i, (entity, mask) in enumerate(zip(truth.entities, truth.masks(truth.entities), strict=True)):
            number = (1, 300, 3226956, 16777215)[i] if i < 4 else 70000 + i
            ids[mask] = number
            segments.append({"id": number, "category_id": category_id(entity.name), "iscrowd": 0, "bbox": [0, 0, 1, 1]})
        if truth.image_id == 785:
            ids[:2] = 99
            segments.append({"id": 99, "category_id": 18, "iscrowd": 1, "bbox": [0, 0, 1, 1], "area": 8})
        png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(png).save(png_folder / f"{truth.stem}.png")
        rows.append({"image_id": truth.image_id, "file_name": f"{truth.stem}.png", "segments_info": segments})
    document = {"images": images(names), "annotations": rows, "categories": categories(False)}
    path = write_json(folder / "annotations" / "panoptic_train2017.json", document)
    return path, write_pictures(folder / "train2017", names), names


def write_entityseg(folder: Path) -> tuple[Path, Path, dict[int, str]]:
    """`entityseg_train_lr.json`, the folder above the folders of pictures, and their names."""
    names = {truth.image_id: f"entity_01_11580/{truth.stem}.jpg" for truth in TRUTH}
    rows = []
    for truth in TRUTH:
        for entity, mask in zip(truth.entities, truth.masks(truth.entities), strict=True):
            row = {"image_id": truth.image_id, "category_id": 1, "id": len(rows) + 1, "segmentation": packed(mask)}
            name = {"wall-other-merged": "wall_ot", "toothbrush": "tooth_brush"}.get(entity.name, entity.name)
            rows.append({**row, "category_id_ori": name, "area": int(mask.sum()), "bbox": [0, 0, 1, 1]})
    document = {"images": images(names), "annotations": rows, "categories": [{"id": 1, "name": "entity"}]}
    path = write_json(folder / "entityseg_train_lr.json", document)
    return path, write_pictures(folder / "images_lr", names), names


def write_csv(path: Path, head: str, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head.split(","), *rows])
    return path


def write_open_images(folder: Path, zipped: bool) -> dict[str, Path]:
    """The arguments of OpenImages. The masks of picture 139 have half its size; 785 is turned by 90 degrees.

    724 has a group, which the file of boxes tells.
    """
    ids = {truth.image_id: f"{'0a5f'[i % 4]}{truth.image_id:015x}" for i, truth in enumerate(TRUTH)}
    pictures = write_pictures(folder / "train", {number: f"{name}.jpg" for number, name in ids.items()}, {785: 90})
    mask_folder = folder / "masks"
    mask_folder.mkdir()
    rows, boxes = [], []
    for truth in TRUTH:
        height, width = truth.size
        for i, entity in enumerate(truth.things):
            mask = entity.whole(truth.size)
            label = OPEN_IMAGES_LABELS[entity.name]
            box = [min(r[1] for r in entity.rectangles) / width, max(r[3] for r in entity.rectangles) / width]
            box += [min(r[0] for r in entity.rectangles) / height, max(r[2] for r in entity.rectangles) / height]
            name = f"{ids[truth.image_id]}_{label[1:].replace('/', '')}_{i:08x}.png"
            if truth.image_id == 139:
                mask = (
                    mask[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2).mean((1, 3)) >= 0.5
                )
            Image.fromarray(mask).save(mask_folder / name)
            rows.append([name, ids[truth.image_id], label, f"{i:08x}", *(f"{side:.6f}" for side in box), "", ""])
            is_group = int(truth.image_id == 724 and i == 5)
            boxes.append(
                [ids[truth.image_id], "xclick", label, 1, *(f"{side:.5f}" for side in box), 0, 0, is_group, 0, 0]
            )
    if zipped:
        for digit in "0a5f":
            with zipfile.ZipFile(folder / f"train-masks-{digit}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for number, path in enumerate(sorted(mask_folder.glob(f"{digit}*.png"))):
                    archive.write(path, path.name, zipfile.ZIP_STORED if number % 2 else None)
    head = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
    head_boxes = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax"
    head_boxes += ",IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    turns = [[name, "train", {785: "90.0", 285: "0.0"}.get(number, "")] for number, name in ids.items()]
    names = [[label, name.capitalize()] for name, label in OPEN_IMAGES_LABELS.items()]
    return {
        "annotations": write_csv(folder / "train-annotations-object-segmentation.csv", head, rows),
        "pictures": pictures,
        "masks": folder if zipped else mask_folder,
        "classes": write_csv(folder / "oidv7-class-descriptions-boxable.csv", "LabelName,DisplayName", names),
        "boxes": write_csv(folder / "train-annotations-bbox.csv", head_boxes, boxes),
        "rotation": write_csv(folder / "train-images-boxable-with-rotation.csv", "ImageID,Subset,Rotation", turns),
    }


def refs() -> list[dict[str, Any]]:
    """Rows of RefCOCO about the annotations of `write_instances`."""
    rows, ids = [], 1000
    for truth in TRUTH[::-1]:
        for entity in truth.things[::-1]:
            if entity.sentences:
                sentences = [
                    {"sent_id": 10 * ids + i, "sent": text, "raw": text.title(), "tokens": text.split()}
                    for i, text in enumerate(entity.sentences)
                ]
                rows.append(
                    {
                        "ref_id": len(rows),
                        "ann_id": ids,
                        "category_id": category_id(entity.name),
                        "image_id": truth.image_id,
                        "file_name": f"COCO_train2014_{truth.stem}_{ids}.jpg",
                        "split": truth.split,
                        "sent_ids": [sentence["sent_id"] for sentence in sentences],
                        "sentences": sentences,
                    }
                )
            ids += 1
    return rows


def write_refcoco(folder: Path) -> dict[str, Path]:
    """refs(unc).p in three protocols, Parquet, JSON and JSON lines; instances.json and the folder of pictures."""
    instances, pictures, _ = write_instances(folder, "COCO_train2014_")
    document = json.loads(instances.read_text())
    annotations = {row["id"]: row for row in document["annotations"]}
    pictures_info = {row["id"]: row for row in document["images"]}
    copies = [
        {
            **row,
            "raw_anns": json.dumps(annotations[row["ann_id"]]),
            "raw_image_info": json.dumps(pictures_info[row["image_id"]]),
        }
        for row in refs()
    ]
    paths = {"instances": instances, "pictures": pictures}
    for protocol in (0, 2, 4):
        paths[f"pickle {protocol}"] = folder / f"refs(unc{protocol}).p"
        paths[f"pickle {protocol}"].write_bytes(pickle.dumps(refs(), protocol))
    paths["json"] = write_json(folder / "refs.json", copies)
    paths["jsonl"] = folder / "refs.jsonl"
    paths["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in copies))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return paths
    paths["parquet"] = folder / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(copies), paths["parquet"])
    return paths
