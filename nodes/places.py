"""Which checkpoints lie in the model folders, by the names that people choose from. Opens no file of weights."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import TypeVar

from ..unigs.checkpoints import PICKLES, bundled_model_dir

BUNDLED = "bundled"
# Folders of models/ in which checkpoints are looked for, in this order.
KINDS = ("unigs", "checkpoints", "diffusers")
Place = TypeVar("Place")


def find_checkpoints(roots: Mapping[str, Sequence[str | Path]]) -> dict[str, dict[str, Path]]:
    """Kind of model folder -> name -> place of what may be a checkpoint there.

    In models/unigs those are pipeline folders and .safetensors files, in models/checkpoints files, in models/diffusers
    folders. Of two namesakes of one kind the first counts, as everywhere in the host.

    Looks again only if a folder or a pipeline's index has changed since, as the host does: it is asked several times
    for each prompt, and there may be hundreds of folders.

    Args:
        roots: kind -> its folders.
    """
    asked = repr(roots)
    if asked not in _last_look or any(_changed_at(place) != time for place, time in _last_look[asked][0].items()):
        _last_look[asked] = _look(roots)
    return _last_look[asked][1]


# What `find_checkpoints` was asked -> when everything it looked at had changed, and what it found.
_last_look: dict[str, tuple[dict[str, int | None], dict[str, dict[str, Path]]]] = {}


def _changed_at(place: str) -> int | None:
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return None


def _look(roots: Mapping[str, Sequence[str | Path]]) -> tuple[dict[str, int | None], dict[str, dict[str, Path]]]:
    """When each place that decides had changed, and what `find_checkpoints` returns."""
    times: dict[str, int | None] = {}
    found: dict[str, dict[str, Path]] = {kind: {} for kind in roots}
    for kind, folders in roots.items():
        for root in folders:
            times[str(root)] = _changed_at(str(root))  # it may not be there
            for folder, below, files in os.walk(root, followlinks=True):
                places = []
                if "model_index.json" in files:
                    index = os.path.join(folder, "model_index.json")
                    times[index] = _changed_at(index)
                    below.clear()  # a pipeline holds components, not checkpoints
                    if kind != "checkpoints" and _is_pipeline(Path(folder)):
                        places = [Path(folder)]
                elif kind != "diffusers":
                    places = [Path(folder, file) for file in files if file.lower().endswith(".safetensors")]
                times |= {place: _changed_at(place) for place in (os.path.join(folder, name) for name in below)}
                for place in places:
                    found[kind].setdefault(place.relative_to(root).as_posix(), place)
    return times, found


def listed(found: Mapping[str, Mapping[str, Place]]) -> dict[str, Place]:
    """Kind -> name -> place, as people see it: name -> place, sorted within each kind.

    A name that an earlier kind has already is listed as "kind/name", so that both can be chosen.
    """
    names: dict[str, Place] = {}
    for kind, places in found.items():
        for name, place in sorted(places.items()):
            while name == BUNDLED or name in names:
                name = f"{kind}/{name}"
            names[name] = place
    return names


def locate(checkpoint: str, found: Mapping[str, Mapping[str, Path]]) -> Path:
    """The folder or file behind a name of the list, or behind "kind/name", whether or not it is listed like that.

    Raises ValueError naming the input if there is none, or none that may be opened.
    """
    if checkpoint == BUNDLED:
        folder = bundled_model_dir()
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"checkpoint: the bundled model is missing from {folder}: install these nodes again")
        return folder
    if checkpoint.lower().endswith(PICKLES):
        raise ValueError(
            f"checkpoint: {checkpoint!r} is a pickle, which can run any program when it is opened, and is never opened "
            "here: get the .safetensors file of this model"
        )
    path = PureWindowsPath(checkpoint)  # which knows the separators of every system
    if path.drive or path.root or ".." in path.parts:
        raise ValueError(f"checkpoint: {checkpoint!r} leads out of the model folders: choose one of the list")
    names = {f"{kind}/{name}": place for kind, places in found.items() for name, place in places.items()}
    names |= listed(found)
    if checkpoint not in names:
        raise ValueError(
            f"checkpoint: {checkpoint!r} is none of {', '.join([BUNDLED, *listed(found)])}: put it into models/unigs, "
            "models/checkpoints or models/diffusers"
        )
    return names[checkpoint]


def _is_pipeline(folder: Path) -> bool:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        return index["_class_name"].startswith(("UniGS", "StableDiffusion")) and "unet" in index
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return False
