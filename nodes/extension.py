"""What ComfyUI is told about this pack: its nodes, its model folder and its example pictures."""

import logging
import shutil
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .coarse_mask import CoarseMaskFromBox
from .colormap import ColormapEncode
from .conditioning import UniGSConditioning, UniGSSplitLatent
from .decode import DichotomyDecode, EntityMaskSplit
from .load import UniGSLoader, register_model_folder
from .sample import UniGSSampler
from .save import SaveEntities

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).resolve().parent.parent / "workflows" / "inputs"


class UniGSExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_model_folder()
        copy_example_inputs(Path(folder_paths.get_input_directory()))
        return [
            UniGSLoader,
            ColormapEncode,
            CoarseMaskFromBox,
            UniGSSampler,
            UniGSConditioning,
            UniGSSplitLatent,
            DichotomyDecode,
            EntityMaskSplit,
            SaveEntities,
        ]


def copy_example_inputs(folder: Path) -> None:
    """Puts the pictures of the workflow templates where Load Image finds them, once: a file that is there already
    stays, and one that was deleted stays away. `.unigs_examples` there lists those that were put."""
    note = folder / ".unigs_examples"
    try:
        known = note.read_text(encoding="utf-8").split() if note.is_file() else []
        new = [example for example in sorted(EXAMPLES.glob("*.png")) if example.name not in known]
        for example in new:
            if not (folder / example.name).exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(example, folder / example.name)
        if new:
            note.write_text("\n".join([*known, *(example.name for example in new)]) + "\n", encoding="utf-8")
    except OSError as error:  # a read-only input folder takes nothing else away
        logger.warning("UniGS: cannot put the examples into %s: %s", folder, error)
