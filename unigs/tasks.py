"""The four tasks of UniGS, in one table that the pipeline, the nodes and the trainer read."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Task(str, Enum):
    """What the model is asked to do."""

    INPAINTING = "inpainting"
    SYNTHESIS = "synthesis"
    REFERRING = "referring"
    ENTITY = "entity"

    @classmethod
    def parse(cls, value: "Task | str") -> "Task":
        """The task with this name. Raises ValueError naming the four tasks for anything else."""
        try:
            return cls(value)
        except ValueError:
            names = ", ".join(repr(task.value) for task in cls)
            raise ValueError(f"unknown task {value!r}: expected one of {names}") from None

    @property
    def spec(self) -> "TaskSpec":
        return TASKS[self]


@dataclass(frozen=True)
class TaskSpec:
    """What one task feeds the UNet, and what happens to the colormap it returns (supplementary, section 1).

    Attributes:
        id: row of the task embedding.
        control: the picture that the VAE encodes as control: the image with the coarse mask cut out, the whole image,
            or the colormap.
        coarse_mask: whether the caller must give one, may give one (default: everything), or it is always everything.
        prompt_template: prompt with `{nouns}` where the named entities go; without it the text is fixed.
        keep_background: whether the background cluster of the decoded colormap is an entity too.
        sample_ratio: share of the task in joint training.
    """

    id: int
    control: Literal["image with hole", "image", "colormap"]
    coarse_mask: Literal["required", "optional", "full"]
    prompt_template: str
    keep_background: bool
    sample_ratio: float

    @property
    def needs_prompt(self) -> bool:
        return "{nouns}" in self.prompt_template

    @property
    def needs_image(self) -> bool:
        return self.control != "colormap"

    @property
    def segments(self) -> bool:
        """Whether the task finds entities in a picture, and paints nothing."""
        return self.control == "image"

    @property
    def prefix(self) -> str:
        return self.prompt_template.split(":")[0] + ":"

    def prompt(self, nouns: str | list[str] | None) -> str:
        """The text the model was trained on: `["dog", "cat"]` or `"dog and cat"` -> `inpainting: generate dog and cat.`

        A text that already starts with the task's prefix is returned as it is.
        Raises ValueError if the task needs nouns and none are given.
        """
        text = (nouns if isinstance(nouns, str) else join_nouns(nouns or [])).strip()
        if text.lower().startswith(self.prefix):
            return text
        if not self.needs_prompt:
            return self.prompt_template
        text = text.rstrip(". ")
        if not text:
            raise ValueError(
                f"this task needs a prompt that names what to look for or paint, like 'dog and cat'; got {nouns!r}"
            )
        return self.prompt_template.format(nouns=text)


TASKS = {
    Task.INPAINTING: TaskSpec(0, "image with hole", "required", "inpainting: generate {nouns}.", False, 0.3),
    Task.SYNTHESIS: TaskSpec(1, "colormap", "full", "synthesis: generate {nouns}.", False, 0.3),
    Task.REFERRING: TaskSpec(2, "image", "optional", "referring: find {nouns}.", False, 0.2),
    Task.ENTITY: TaskSpec(3, "image", "full", "panoptic: all entities.", True, 0.2),
}

# The entity task's prompt for a checkpoint that leaves sky and ground to the background unless it is asked for them.
WITH_STUFF = "panoptic: all entities and stuff."

# What a checkpoint that says nothing of its own gets. For the decoder of colormaps: delta, the share of the picture
# below which an entity goes to what surrounds it, whether to go by the colours of the palette, and by what share of the
# picture's side borders may move to edges of the picture.
DECODER = {"delta": 10.0, "min_share": 0.0, "use_palette": False, "snap_share": 0.0}
DEFAULT_SETTINGS: dict[Task, dict[str, float]] = {
    Task.INPAINTING: {"num_inference_steps": 50, "guidance_scale": 7.5, **DECODER},
    Task.SYNTHESIS: {"num_inference_steps": 50, "guidance_scale": 7.5, **DECODER},
    Task.REFERRING: {"num_inference_steps": 50, "guidance_scale": 1.0, **DECODER},
    Task.ENTITY: {"num_inference_steps": 50, "guidance_scale": 1.0, **DECODER},
}

IRREGULAR = {
    **{"person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "knife": "knives"},
    **{"sheep": "sheep", "fish": "fish", "broccoli": "broccoli", "shelf": "shelves", "foot": "feet", "leaf": "leaves"},
}


def join_nouns(nouns: list[str]) -> str:
    """`["dog", "cat", "tree"]` -> `"dog, cat and tree"`; two of a kind are counted: `["dog", "cat", "dog"]` -> `"2 dogs
    and cat"`."""
    counted = [
        noun if (count := nouns.count(noun)) == 1 else f"{count} {plural(noun)}" for noun in dict.fromkeys(nouns)
    ]
    return " and ".join([", ".join(counted[:-1]), counted[-1]] if len(counted) > 1 else counted)


def plural(noun: str) -> str:
    """ "dog" -> "dogs", "wine glass" -> "wine glasses", "skis" -> "skis"."""
    before, space, word = noun.rpartition(" ")
    if word in IRREGULAR:
        word = IRREGULAR[word]
    elif word.endswith(("ss", "us", "x", "z", "ch", "sh")):
        word += "es"
    elif word.endswith("y") and word[-2:-1] not in "aeiou":
        word = word[:-1] + "ies"
    elif not word.endswith("s"):
        word += "s"
    return before + space + word
