"""Open Images V7, the part with object masks (350 kinds). https://storage.googleapis.com/openimages/web/factsfigures_v7.html

Licence of the annotations: CC BY 4.0; the pictures are listed as CC BY 2.0.
"""

import csv
import io
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from training.datasets import Record, RecordSet
from training.datasets.annotations import check_folder, group
from training.datasets.masks import area, encode_masks, resize_nearest
from training.datasets.pictures import BadPicture, read_picture, read_png, read_size

BOX = ("XMin", "XMax", "YMin", "YMax")
SAME_BOX = 1e-3  # boxes of the two files are the same if no side differs by more, as a share of the picture
SAME_SHAPE = 0.02  # a mask belongs to the picture if its height is what its width lets expect, but for this and a pixel


class OpenImages(RecordSet):
    """`{train,validation,test}-annotations-object-segmentation.csv` and its masks.

    Masks are resized to the picture's size (nearest). What is smaller lies in front of what is larger.

    Args:
        annotations: path of that file.
        pictures: folder of `<ImageID>.jpg`.
        masks: folder of the PNGs, or of the archives `{split}-masks-{0..f}.zip`, which are read without being unpacked.
        classes: path of `oidv7-class-descriptions-boxable.csv`.
        boxes: path of `oidv6-train-annotations-bbox.csv` or its like: masks of boxes that hold a group are dropped.
        rotation: path of `train-images-boxable-with-rotation.csv` or its like. Pictures are turned counterclockwise by
            what it says; where that is 0 or empty, EXIF counts.
        split: "train", "validation" or "test", for the names of the archives.
        name: first part of the records' keys.

    Raises:
        FileNotFoundError: a file or folder is not there.
        ValueError: a file is not of this format.
    """

    exhaustive = False  # a kind is annotated only where somebody looked for it

    def __init__(
        self,
        annotations: Path | str,
        pictures: Path | str,
        masks: Path | str,
        classes: Path | str,
        boxes: Path | str | None = None,
        rotation: Path | str | None = None,
        split: str = "train",
        name: str = "openimages",
    ):
        self.source, self.name = str(annotations), name
        self.pictures, self.masks = check_folder(pictures, "pictures"), check_folder(masks, "masks")
        archives = {digit: self.masks / f"{split}-masks-{digit}.zip" for digit in "0123456789abcdef"}
        self.archives = {digit: MaskArchive(path) for digit, path in archives.items() if path.is_file()}

        names = {label: noun.lower() for label, noun in read_csv(classes, "LabelName", "DisplayName")}
        self.nouns = sorted(set(names.values()))
        numbers = {label: self.nouns.index(noun) for label, noun in names.items()}
        pictures_found: dict[str, int] = {}
        owners, labels, paths, sides = [], [], [], []
        columns = ("ImageID", "LabelName", "MaskPath", *(f"Box{side}" for side in BOX))
        for image_id, label, path, *box in read_csv(annotations, *columns):
            if label not in numbers:
                raise ValueError(f"{classes} does not name {label}, which {annotations} has: expected the V7 file")
            owners.append(pictures_found.setdefault(image_id, len(pictures_found)))
            labels.append(numbers[label])
            paths.append(path.encode())
            if boxes is not None:
                sides.append([float(side) for side in box])
        self.image_ids = np.array([*pictures_found], np.bytes_)
        self.labels, self.paths = np.array(labels, np.int16), np.array(paths)
        self.is_group = np.zeros(len(labels), bool)
        if boxes is not None:
            self._mark_groups(boxes, np.array(owners, np.int32), np.array(sides, np.float32), pictures_found, numbers)
        self.order, self.first = group(np.array(owners, np.int32), len(pictures_found))
        self.rotations = np.zeros(len(pictures_found), np.int16)
        if rotation is not None:
            for image_id, degrees in read_csv(rotation, "ImageID", "Rotation"):
                if image_id in pictures_found and degrees not in ("", "nan"):
                    if float(degrees) not in (0, 90, 180, 270):
                        raise ValueError(f"{rotation}: {image_id} has Rotation {degrees}, expected 0, 90, 180 or 270")
                    self.rotations[pictures_found[image_id]] = int(float(degrees))

    def _mark_groups(
        self, boxes: Path | str, owners: np.ndarray, sides: np.ndarray, pictures: dict[str, int], labels: dict[str, int]
    ) -> None:
        """Set `is_group` of the masks whose box the file of boxes calls a group."""
        groups = defaultdict(list)
        for image_id, label, is_group, *box in read_csv(boxes, "ImageID", "LabelName", "IsGroupOf", *BOX):
            if is_group == "1" and image_id in pictures and label in labels:
                groups[pictures[image_id], labels[label]].append([float(side) for side in box])
        for row, key in enumerate(zip(owners.tolist(), self.labels.tolist(), strict=True)):
            if key in groups:
                self.is_group[row] = (np.abs(np.array(groups[key]) - sides[row]).max(axis=1) <= SAME_BOX).any()

    def __len__(self) -> int:
        return len(self.image_ids)

    def picture_size(self, index: int) -> tuple[int, int]:
        return read_size(self._picture(index), int(self.rotations[index]))

    def record(self, index: int) -> Record:
        path, rotation, size = self._picture(index), int(self.rotations[index]), self.picture_size(index)
        rows = self.order[self.first[index] : self.first[index + 1]].tolist()
        found = []
        for row in rows:
            if not self.is_group[row]:
                [rle] = encode_masks(self._mask(bytes(self.paths[row]).decode(), size)[None])
                if area(rle):
                    found.append((rle, self.nouns[self.labels[row]]))
        found.sort(key=lambda pair: -area(pair[0]))
        return Record(
            f"{self.name}/{path.stem}",
            size,
            partial(read_picture, path, size, rotation),
            rles=[rle for rle, _ in found],
            labels=[noun for _, noun in found],
            is_thing=np.ones(len(found), bool),
            phrases=[()] * len(found),
            also_present=frozenset(self.nouns[self.labels[row]] for row in rows if self.is_group[row]),
        )

    def _picture(self, index: int) -> Path:
        return self.pictures / f"{bytes(self.image_ids[index]).decode()}.jpg"

    def _mask(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool of a picture of this size. Raises BadPicture."""
        if self.archives:
            digit = name[0].lower()
            if digit not in self.archives:
                raise BadPicture(f"the archive of masks that begin with {digit} is missing in {self.masks}")
            png, where = io.BytesIO(self.archives[digit].read(name)), f"{name} in {self.archives[digit].path}"
        else:
            png, where = self.masks / name, str(self.masks / name)
        mask = read_png(png, where, "L") > 0
        expected = mask.shape[1] * size[0] / size[1]
        if abs(mask.shape[0] - expected) > 1 + SAME_SHAPE * expected:
            raise BadPicture(
                f"{where} has (height, width) {mask.shape}, which is no other size of the picture's {size}"
            )
        return resize_nearest(mask, size)


class MaskArchive:
    """One of the zip files of masks. The list of its files is read when the first is asked for, and held compactly.

    It keeps no open file, so that processes which were forked do not disturb each other.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self, name: str) -> bytes:
        """The contents of a file. Raises BadPicture if it, or the archive, cannot be read."""
        try:
            names, places = self._contents
            at = int(np.searchsorted(names, name.encode()))
            if at == len(names) or names[at] != name.encode():
                raise BadPicture(f"{name} is missing in {self.path}")
            start, length, method = places[at].tolist()
            with self.path.open("rb") as file:
                file.seek(start)
                name_length, extra_length = struct.unpack("<26x2H", file.read(30))  # the local header
                file.seek(name_length + extra_length, 1)
                data = file.read(length)
            return data if method == zipfile.ZIP_STORED else zlib.decompress(data, -zlib.MAX_WBITS)
        except (OSError, struct.error, zlib.error, zipfile.BadZipFile) as error:
            raise BadPicture(f"{name} in {self.path} cannot be read: {error}") from None

    @cached_property
    def _contents(self) -> tuple[np.ndarray, np.ndarray]:
        """Names (M,) bytes, sorted; where each begins, its length and compression (M, 3) int64."""
        with zipfile.ZipFile(self.path) as archive:
            entries = {Path(entry.filename).name.encode(): entry for entry in archive.infolist()}
        names = sorted(entries)
        places = [(entries[n].header_offset, entries[n].compress_size, entries[n].compress_type) for n in names]
        return np.array(names, np.bytes_), np.array(places, np.int64).reshape(-1, 3)


def read_csv(path: Path | str, *columns: str) -> Iterator[tuple[str, ...]]:
    """These columns, two or more, of every row.

    Raises FileNotFoundError, and ValueError if a column is missing or a row is too short.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            head = next(rows, [])
            missing = [column for column in columns if column not in head]
            if missing:
                raise ValueError(
                    f"{path} has no column {missing[0]!r}, only {', '.join(head) or 'nothing'}: is it the right file?"
                )
            values = itemgetter(*map(head.index, columns))
            for row in rows:
                try:
                    yield values(row)
                except IndexError:
                    raise ValueError(
                        f"{path}, line {rows.line_num}: {len(row)} values, expected {len(head)}; "
                        "is the download complete?"
                    ) from None
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path}: {error.strerror}; give the path of the file") from None
