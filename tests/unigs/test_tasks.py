import pytest

from unigs.tasks import TASKS, WITH_STUFF, Task, join_nouns, plural


def test_values_and_ids():
    assert [task.value for task in Task] == ["inpainting", "synthesis", "referring", "entity"]
    assert sorted(spec.id for spec in TASKS.values()) == [0, 1, 2, 3]
    assert sum(spec.sample_ratio for spec in TASKS.values()) == pytest.approx(1)


def test_parse():
    assert Task.parse("entity") is Task.ENTITY
    assert Task.parse(Task.REFERRING) is Task.REFERRING
    with pytest.raises(ValueError, match="unknown task 'panoptic'.*'inpainting', 'synthesis', 'referring', 'entity'"):
        Task.parse("panoptic")


@pytest.mark.parametrize(
    "task, nouns, text",
    [
        (Task.INPAINTING, ["dog", "cat"], "inpainting: generate dog and cat."),
        (Task.SYNTHESIS, "dog on grass.", "synthesis: generate dog on grass."),
        (Task.REFERRING, "referring: find dog.", "referring: find dog."),
        (Task.ENTITY, "anything", "panoptic: all entities."),
        (Task.ENTITY, None, "panoptic: all entities."),
        (Task.ENTITY, WITH_STUFF, "panoptic: all entities and stuff."),
    ],
)
def test_prompt(task, nouns, text):
    assert task.spec.prompt(nouns) == text


@pytest.mark.parametrize("nouns", [None, "", "  ", []])
def test_prompt_needs_nouns(nouns):
    with pytest.raises(ValueError, match="needs a prompt"):
        Task.REFERRING.spec.prompt(nouns)


def test_join_nouns():
    assert join_nouns([]) == ""
    assert join_nouns(["dog"]) == "dog"
    assert join_nouns(["dog", "cat", "tree"]) == "dog, cat and tree"
    assert join_nouns(["dog", "cat", "dog"]) == "2 dogs and cat"
    assert join_nouns(["person", "person", "person"]) == "3 people"


def test_plurals():
    nouns = [
        "dog",
        "person",
        "wine glass",
        "bus",
        "sheep",
        "strawberry",
        "toy",
        "skis",
        "sandwich",
        "box",
        "hot dog",
        "knife",
    ]
    assert [plural(noun) for noun in nouns] == [
        *("dogs", "people", "wine glasses", "buses", "sheep", "strawberries", "toys", "skis", "sandwiches", "boxes"),
        *("hot dogs", "knives"),
    ]
