"""COCO 2017: instances (80 kinds of things) and panoptic (things and stuff).

Format: https://cocodataset.org/#format-data. Licence: CC BY 4.0 of the annotations, Flickr's of each picture.
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from training.datasets import Record, RecordSet
from training.datasets.annotations import JsonTexts, check_folder, column, group, read_annotations
from training.datasets.masks import area, encode_masks, parse_segmentation
from training.datasets.pictures import BadPicture, read_picture, read_png


class CocoPictures(RecordSet):
    """The part that all COCO-shaped files share: the pictures, as columns.

    Args:
        document: the parsed file.
        source: its path, for messages.
        pictures: folder in which the `file_name`s lie.
        name: first part of the records' keys.
        exclude_image_ids: ids of pictures to leave out.
    """

    def __init__(
        self,
        document: dict[str, Any],
        source: Path | str,
        pictures: Path | str,
        name: str,
        exclude_image_ids: Collection[int],
    ):
        self.source, self.name = str(source), name
        self.pictures = check_folder(pictures, "pictures")
        excluded = frozenset(exclude_image_ids)
        rows = document["images"]
        ids = column(rows, "id", int, source)
        kept = [row for row, image_id in zip(rows, ids, strict=True) if image_id not in excluded]
        self.image_ids = np.array(column(kept, "id", int, source), np.int64)
        self.file_names: list[str] = column(kept, "file_name", str, source)
        self.sizes = np.array([column(kept, key, int, source) for key in ("height", "width")], np.int32).T
        for what, values in (("id", ids), ("file_name", self.file_names)):
            if len(set(values)) < len(values):
                raise ValueError(f"{source}: two pictures have the same {what!r}; every one must be unique")
        numbers = dict.fromkeys(ids, -1)  # -1: excluded
        numbers.update((image_id, number) for number, image_id in enumerate(self.image_ids.tolist()))
        owners = column(document["annotations"], "image_id", int, source)
        try:
            owners = np.array([numbers[image_id] for image_id in owners], np.int32)
        except KeyError as error:
            raise ValueError(f"{source}: an annotation belongs to image {error}, which is not in 'images'") from None
        self.order, self.first = group(owners, len(kept))

    def __len__(self) -> int:
        return len(self.file_names)

    def picture_size(self, index: int) -> tuple[int, int]:
        return int(self.sizes[index, 0]), int(self.sizes[index, 1])

    def rows(self, index: int) -> list[int]:
        """Numbers of the annotations of picture `index`."""
        return self.order[self.first[index] : self.first[index + 1]].tolist()

    def make_record(self, index: int, **entities: Any) -> Record:
        """A record of picture `index` with these entities."""
        file_name, size = self.file_names[index], self.picture_size(index)
        key = f"{self.name}/{PurePosixPath(file_name).with_suffix('')}"
        return Record(key, size, partial(read_picture, self.pictures / file_name, size), **entities)


class CocoMasks(CocoPictures):
    """Pictures with one annotation a mask, of any COCO-shaped file. What is smaller lies in front of what is larger.

    Crowds (iscrowd 1) and masks without a pixel are no entities.

    Args:
        labels: the noun of each annotation.
        nouns: further ones, which no annotation may have.
        stuff: nouns that are not things.
        phrases: annotation id -> sentences that refer to it.
    """

    def __init__(
        self,
        document: dict[str, Any],
        segmentations: JsonTexts,
        source: Path | str,
        pictures: Path | str,
        name: str,
        labels: list[str],
        *,
        nouns: Collection[str] = (),
        exclude_image_ids: Collection[int] = (),
        stuff: Collection[str] = (),
        phrases: Mapping[int, tuple[str, ...]] | None = None,
    ):
        super().__init__(document, source, pictures, name, exclude_image_ids)
        rows = document["annotations"]
        self.ids = np.array(column(rows, "id", int, source), np.int64)
        self.is_crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], bool)
        self.nouns = sorted({*labels, *nouns})
        number_of = {noun: number for number, noun in enumerate(self.nouns)}
        self.labels = np.array([number_of[label] for label in labels], np.int32)
        self.texts = np.array([row["segmentation"] for row in rows], np.int64)
        self.segmentations = segmentations
        self.stuff, self.phrases = frozenset(stuff), phrases or {}

    def record(self, index: int) -> Record:
        size = self.picture_size(index)
        found, crowds, empty = [], set(), set()
        for row in self.rows(index):
            if self.is_crowd[row]:
                crowds.add(self.nouns[self.labels[row]])
                continue
            try:
                rle = parse_segmentation(self.segmentations[int(self.texts[row])], size)
            except ValueError as error:
                raise BadPicture(
                    f"{self.source}: annotation {self.ids[row]} of {self.file_names[index]}: {error}"
                ) from None
            if rle is None:
                empty.add(self.nouns[self.labels[row]])
            else:
                found.append((rle, row))
        found.sort(key=lambda pair: -area(pair[0]))
        labels = [self.nouns[self.labels[row]] for _, row in found]
        return self.make_record(
            index,
            rles=[rle for rle, _ in found],
            labels=labels,
            is_thing=np.array([label not in self.stuff for label in labels], bool),
            phrases=[self.phrases.get(int(self.ids[row]), ()) for _, row in found],
            also_present=frozenset(crowds | empty.difference(labels)),
        )


class CocoInstances(CocoMasks):
    """`instances_{train,val}2017.json`: an entity is an object of one of the 80 kinds.

    Args:
        annotations: path of the file.
        pictures: folder of the JPEGs, like `train2017`.
        name: first part of the records' keys.
        exclude_image_ids: ids of pictures to leave out, like those that RefCOCO is evaluated on.

    Raises:
        FileNotFoundError: the file or the folder is not there.
        ValueError: the file is not of this format.
    """

    def __init__(
        self, annotations: Path | str, pictures: Path | str, name: str = "coco", exclude_image_ids: Collection[int] = ()
    ):
        document, segmentations = read_annotations(annotations, "segmentation")
        names = category_names(document, annotations)
        super().__init__(
            document,
            segmentations,
            annotations,
            pictures,
            name,
            labels_of(document, names, annotations),
            nouns=names.values(),
            exclude_image_ids=exclude_image_ids,
        )


class CocoPanoptic(CocoPictures):
    """`panoptic_{train,val}2017.json` and its PNGs: an entity is a segment that is no crowd, thing or stuff.

    A pixel of the PNG holds R + 256 G + 65536 B, the id of its segment; 0 belongs to none.

    Args:
        annotations: path of the file.
        pictures: folder of the JPEGs, like `train2017`.
        segments: folder of the PNGs; the one beside `annotations` that is called as it, if not given.
        name, exclude_image_ids: as in CocoInstances.

    Raises:
        FileNotFoundError: the file or a folder is not there.
        ValueError: the file is not of this format.
    """

    def __init__(
        self,
        annotations: Path | str,
        pictures: Path | str,
        segments: Path | str | None = None,
        name: str = "coco-panoptic",
        exclude_image_ids: Collection[int] = (),
    ):
        document, self.segments_info = read_annotations(annotations, "segments_info")
        super().__init__(document, annotations, pictures, name, exclude_image_ids)
        self.segments = check_folder(
            Path(annotations).with_suffix("") if segments is None else segments, "segment PNGs"
        )
        rows = document["annotations"]
        self.png_names: list[str] = column(rows, "file_name", str, annotations)
        self.texts = np.array([row["segments_info"] for row in rows], np.int64)
        names = category_names(document, annotations)
        self.categories = {
            number: (plain_noun(names[number]), bool(thing))
            for number, thing in zip(names, column(document["categories"], "isthing", int, annotations), strict=True)
        }
        self.nouns = sorted({noun for noun, _ in self.categories.values()})

    def record(self, index: int) -> Record:
        rows = self.rows(index)
        if len(rows) != 1:
            raise BadPicture(f"{self.source}: {self.file_names[index]} has {len(rows)} annotations, expected 1")
        png = self.segments / self.png_names[rows[0]]
        pixels = read_png(png, str(png), "RGB")
        if pixels.shape[:2] != tuple(self.sizes[index]):
            raise BadPicture(
                f"{png} has (height, width) {pixels.shape[:2]}, the picture {tuple(self.sizes[index].tolist())}"
            )
        ids = pixels.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        kept, crowds = [], set()
        listed = {0}
        for segment in self.segments_info[int(self.texts[rows[0]])]:
            listed.add(segment["id"])
            if segment["category_id"] not in self.categories:
                raise BadPicture(
                    f"{self.source}: {png.name} has the category {segment['category_id']}, which is not listed"
                )
            noun, thing = self.categories[segment["category_id"]]
            if segment.get("iscrowd", 0):
                crowds.add(noun)
            else:
                kept.append((segment["id"], noun, thing))
        there = set(np.unique(ids).tolist())
        if there - listed or listed - there - {0}:
            raise BadPicture(
                f"{png} does not show the segments that {self.source} lists: {sorted((there ^ listed) - {0})[:5]}"
            )
        return self.make_record(
            index,
            rles=encode_masks(ids == np.array([number for number, _, _ in kept], np.int32)[:, None, None]),
            labels=[noun for _, noun, _ in kept],
            is_thing=np.array([thing for _, _, thing in kept], bool),
            phrases=[()] * len(kept),
            also_present=frozenset(crowds),
        )


def category_names(document: dict[str, Any], path: Path | str) -> dict[int, str]:
    """id -> name of the categories."""
    rows = document["categories"]
    return dict(zip(column(rows, "id", int, path), column(rows, "name", str, path), strict=True))


def labels_of(document: dict[str, Any], names: Mapping[int, str], path: Path | str) -> list[str]:
    """The name of each annotation's category, by its id."""
    try:
        return [names[number] for number in column(document["annotations"], "category_id", int, path)]
    except KeyError as error:
        raise ValueError(f"{path}: an annotation has the category {error}, which is not in 'categories'") from None


def plain_noun(name: str) -> str:
    """A panoptic category as people say it: "wall-other-merged" -> "wall", "wall-brick" -> "brick wall"."""
    first, *rest = [part for part in name.split("-") if part not in ("other", "merged", "stuff")]
    return " ".join([*rest, first] if first in ("wall", "floor") else [first, *rest])
