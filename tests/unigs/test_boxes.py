import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unigs.boxes import LabelledBox, parse_boxes, prompt_of


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("1,2,3,4", [((1, 2, 3, 4), "")]),
        (" 1, 2,3 ,4 ;5 6 7 8;\n9,10,11.5,12\n\n", [((1, 2, 3, 4), ""), ((5, 6, 7, 8), ""), ((9, 10, 11.5, 12), "")]),
        (",1,2,3,4,", [((1, 2, 3, 4), "")]),
        ("", []),
        (" ; \n", []),
        ("10, 20, 60, 90 cat", [((10, 20, 60, 90), "cat")]),
        (
            "1 2 3 4 a  black\tdog, sitting ;5,6,7,8,猫\n-1,0,1e1,.5 e2e",
            [
                ((1, 2, 3, 4), "a black dog, sitting"),
                ((5, 6, 7, 8), "猫"),
                ((-1, 0, 10, 0.5), "e2e"),
            ],
        ),
    ],
)
def test_boxes_and_labels_as_text(text, boxes):
    assert parse_boxes(text) == boxes


@pytest.mark.parametrize(
    "text",
    ["1,2,3", "1,2,3,4,5", "1,2,3,x", "1;2;3;4", "[1,2,3,4]", "1,2,3,4cat", "1,2,3,4 5 cats", "1,2,3,4 (cat)", "cat"],
)
def test_text_that_is_no_box_is_quoted(text):
    with pytest.raises(ValueError, match=r"^regions: expected .*cannot read ") as caught:
        parse_boxes(f"0,0,9,9 dog; {text}", "regions")
    assert repr(text.split(";")[0]) in str(caught.value) and "\n" not in str(caught.value)


labels = st.lists(st.text("abcé猫", min_size=1, max_size=4), max_size=3).map(" ".join)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.tuples(*[st.floats(-1e6, 1e6)] * 4), labels), max_size=5))
def test_boxes_survive_text(boxes):
    written = "; ".join(f"{','.join(map(repr, box))} {label}" for box, label in boxes)
    assert parse_boxes(written) == boxes


def test_the_prompt_names_what_is_labelled_from_left_to_right():
    dog, cat, tree = (LabelledBox((x, 0, x + 20, 9), label) for x, label in ((70, "dog"), (10, "cat"), (90, "tree")))
    unnamed = LabelledBox((0, 0, 5, 5), "")
    assert prompt_of([dog, unnamed, cat]) == "cat and dog"
    assert prompt_of([tree, dog, cat]) == "cat, dog and tree"
    assert prompt_of([tree, dog, cat, dog]) == "cat, 2 dogs and tree"
    assert prompt_of([unnamed]) == prompt_of([]) == ""
