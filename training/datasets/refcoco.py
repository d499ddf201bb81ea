"""RefCOCO, RefCOCO+ and RefCOCOg: sentences that refer to one object of a COCO train2014 picture.

Formats: `refs(unc|google|umd).p` beside COCO's `instances.json`, of https://github.com/lichengunc/refer, and the
Parquet or JSON copies of https://huggingface.co/datasets/jxu124/refcoco, which hold the annotations too.
"""

import json
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

from training.datasets.annotations import JsonTexts, column, read_annotations
from training.datasets.coco import CocoMasks, category_names, labels_of

FIELDS = {"ref_id": int, "ann_id": int, "category_id": int, "image_id": int, "split": str, "sentences": list}

# fmt: off
COCO_THINGS = (  # in the order of their ids, which leave out those below
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_NAMES = dict(zip((number for number in range(1, 91) if number not in UNUSED_IDS), COCO_THINGS, strict=True))


class RefCoco(CocoMasks):
    """The pictures of one split, with all objects that are known of them; some have phrases.

    Args:
        refs: a pickle `refs(...).p`, or a copy as `.parquet` (needs pyarrow), `.json` (a list) or `.jsonl`.
        pictures: folder of the JPEGs, `train2014`.
        instances: COCO's `instances.json` of the same folder. A pickle needs it. With a copy it may be left out: then
            a picture has the objects that somebody refers to, and no others.
        split: "train", "val", "test", "testA" or "testB", as the file has them.
        name: first part of the records' keys.
        exclude_image_ids: ids of pictures to leave out.

    Raises:
        FileNotFoundError: a file or the folder is not there.
        ValueError: a file is not of this format; in a pickle, anything but lists, dicts, strings and numbers.
        ImportError: pyarrow is needed and not installed.
    """

    def __init__(
        self,
        refs: Path | str,
        pictures: Path | str,
        instances: Path | str | None = None,
        split: str = "train",
        name: str = "refcoco",
        exclude_image_ids: Collection[int] = (),
    ):
        rows = read_refs(refs)
        chosen = [row for row in rows if row["split"] == split]
        if not chosen:
            raise ValueError(f"{refs} has no split {split!r}: expected one of {sorted({row['split'] for row in rows})}")
        if instances is None:
            document, segmentations = embedded_annotations(chosen, refs)
            source = refs
        else:
            document, segmentations = read_annotations(instances, "segmentation")
            source = instances
        phrases: dict[int, tuple[str, ...]] = {}
        for row in chosen:
            before = phrases.get(row["ann_id"], ())
            phrases[row["ann_id"]] = before + sentences(row, refs)  # with repeats: evaluations count each of them
        unknown = phrases.keys() - set(column(document["annotations"], "id", int, source))
        if unknown:
            raise ValueError(
                f"{source} has no annotation {min(unknown)}, that {refs} refers to: give instances.json of train2014"
            )
        wanted = {row["image_id"] for row in chosen} - set(exclude_image_ids)
        keep_pictures(document, wanted)
        names = category_names(document, source)
        super().__init__(
            document,
            segmentations,
            source,
            pictures,
            name,
            labels_of(document, names, source),
            nouns=names.values(),
            phrases=phrases,
        )
        self.exhaustive = instances is not None


def evaluation_image_ids(*refs: Path | str) -> set[int]:
    """Ids of the pictures of every split but "train" of these files: to be excluded from joint training on COCO."""
    return {row["image_id"] for path in refs for row in read_refs(path) if row["split"] != "train"}


def read_refs(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a refs file, as RefCoco takes it; at least FIELDS are in each."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"cannot read the references {path}: no such file; give the path of refs(unc).p or a copy"
        )
    if path.suffix == ".parquet":
        rows = _read_parquet(path)
    elif path.suffix in (".json", ".jsonl"):
        try:
            text = path.read_text(encoding="utf-8")
            rows = (
                json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
            )
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error})") from None
    else:
        rows = read_plain_pickle(path)
    if not isinstance(rows, list) or set(map(type, rows)) - {dict}:
        raise ValueError(f"{path} is no RefCOCO file: expected a list of dicts with {', '.join(FIELDS)}")
    for key, kind in FIELDS.items():
        column(rows, key, kind, path)
    return rows


def sentences(row: dict[str, Any], path: Path | str) -> tuple[str, ...]:
    """The sentences of one row."""
    found = [sentence.get("sent") if isinstance(sentence, dict) else None for sentence in row["sentences"]]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(
            f"{path}: ref {row['ref_id']} has no list of sentences with 'sent', got {row['sentences']!r:.80}"
        )
    return tuple(str(text).strip() for text in found)


def embedded_annotations(rows: list[dict[str, Any]], path: Path | str) -> tuple[dict[str, Any], JsonTexts]:
    """The same as `read_annotations`, from the annotations that the copies hold as JSON strings."""
    images, annotations, texts = {}, {}, []
    for row in rows:
        if row["ann_id"] in annotations:
            continue
        try:
            annotation, image = json.loads(row["raw_anns"]), json.loads(row["raw_image_info"])
            texts.append(json.dumps(annotation["segmentation"]).encode())
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}: ref {row['ref_id']} has no annotation of its own (JSON strings raw_anns and raw_image_info): "
                "give `instances`, COCO's instances.json of train2014"
            ) from None
        annotations[row["ann_id"]] = {
            "id": row["ann_id"],
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "segmentation": len(texts) - 1,
        }
        images[row["image_id"]] = {**image, "id": row["image_id"]}
    categories = [{"id": number, "name": name} for number, name in COCO_NAMES.items()]
    document = {"images": list(images.values()), "annotations": list(annotations.values()), "categories": categories}
    return document, JsonTexts(texts)


def keep_pictures(document: dict[str, Any], image_ids: Collection[int]) -> None:
    """Take all other pictures, and their annotations, out of a document."""
    document["images"] = [row for row in document["images"] if row.get("id") in image_ids]
    document["annotations"] = [row for row in document["annotations"] if row.get("image_id") in image_ids]


class PlainUnpickler(pickle.Unpickler):
    """Reads a pickle without importing what it names: lists, dicts, strings and numbers need no name."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants to run {module_name}.{global_name}")


def read_plain_pickle(path: Path) -> Any:
    """What a pickle holds. Raises ValueError, nothing run, if that is not only lists, dicts, strings, numbers."""
    try:
        with path.open("rb") as file:
            value = PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except Exception as error:  # a broken pickle may fail in any way
        raise ValueError(
            f"{path} is refused: {error}. A RefCOCO pickle holds only lists, dicts, strings and numbers; "
            "nothing of it was run. Get the file from its source again"
        ) from None
    seen, left = set(), [value]
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        if isinstance(item, dict | list | tuple):
            seen.add(id(item))
            left += [*item.keys(), *item.values()] if isinstance(item, dict) else item
        elif not isinstance(item, str | int | float | None):
            raise ValueError(
                f"{path} is refused: it holds a {type(item).__name__}, not only lists, dicts, strings, numbers"
            )
    return value


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    wanted = [*FIELDS, "raw_anns", "raw_image_info"]
    try:
        names = parquet.read_schema(path).names
        return parquet.read_table(path, columns=[name for name in wanted if name in names]).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path} is not valid Parquet ({error})") from None
