"""EntitySeg: every region of a picture is an entity, thing or stuff, without a fixed list of kinds.

Format: https://github.com/adobe-research/EntitySeg-Dataset. Licence: research only, not commercial.
"""

from collections.abc import Collection
from pathlib import Path

from training.datasets.annotations import read_annotations
from training.datasets.coco import CocoMasks

UNNAMED = "entity"


class EntitySeg(CocoMasks):
    """`entityseg_{train,val}_{lr}.json`: an entity is an annotation that is no crowd.

    Its noun is `category_id_ori`, where the file has one, with blanks for underscores; else "entity". Whether it is
    thing or stuff is what "isthing" of the category of that name says; without it, thing.

    Args:
        annotations: path of the file.
        pictures: folder in which `entity_01_11580` and the others lie, of the size that the file is made for.
        name, exclude_image_ids: as in CocoInstances.

    Raises:
        FileNotFoundError: the file or the folder is not there.
        ValueError: the file is not of this format.
    """

    exhaustive = False  # nouns are not drawn from one list: a "man" need not be called "person" too

    def __init__(
        self,
        annotations: Path | str,
        pictures: Path | str,
        name: str = "entityseg",
        exclude_image_ids: Collection[int] = (),
    ):
        document, segmentations = read_annotations(annotations, "segmentation")
        super().__init__(
            document,
            segmentations,
            annotations,
            pictures,
            name,
            [tidy(str(row.get("category_id_ori", UNNAMED))) for row in document["annotations"]],
            exclude_image_ids=exclude_image_ids,
            stuff={
                tidy(str(category.get("name")))
                for category in document["categories"]
                if not category.get("isthing", True)
            },
        )


def tidy(name: str) -> str:
    """ "floor_structure_ot" -> "floor structure": "_ot" marks the rest ("other") of a group of kinds."""
    return name.removesuffix("_ot").replace("_", " ").strip() or UNNAMED
