"""How the soak judges; it is run for real by hand."""

import random

import pytest

from benchmarks.soak import EVERY, SIZES, Prompts, Report, main


def report(in_use: list[float]) -> Report:
    found = Report("0", in_use=in_use, resident=[1.5 * value for value in in_use for _ in range(EVERY)])
    found.ended.update({"finished": EVERY * len(in_use)})
    return found


def test_what_the_warm_up_takes_is_no_growth():
    before, after, growth = report([100, 500, *[600] * 20]).growth(2 * EVERY)
    assert (before, after, growth) == (600, 600, 0)


def test_growth_is_from_one_end_to_the_other_and_single_readings_do_not_count():
    rising = [600.0 + number for number in range(20)]
    rising[3], rising[-1] = 9999, 1
    before, after, growth = report(rising).growth(0)
    assert before == 601.5 and after == 616.5 and growth == pytest.approx(15 / 601.5)


def test_the_report_says_what_happened():
    found = report([600] * 10)
    found.failures.append("prompt 3: out of luck")
    assert "| failed that should have worked | 1 |" in found.table(0)
    assert "| memory in use, at the end | 600 MiB (+0.00%) |" in found.table(0)
    assert found.as_json(0)["prompts"] == 100 and found.as_json(0)["growth"] == 0


def test_no_prompt_has_what_a_node_refuses():
    prompts = object.__new__(Prompts)
    prompts.checkpoints, prompts.pictures = ["bundled"], dict.fromkeys(SIZES, "a.png")
    graphs = (prompts.any(number, random.Random(number), False)[1] for number in range(300))
    nodes = [node["inputs"] for graph in graphs for node in graph.prompt.values()]
    assert {node["ensemble"] for node in nodes if "ensemble" in node} == {1, 3}  # of two votes none wins


def test_a_warm_up_without_an_end_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--prompts", "50", "--warm-up", "45"])
    assert "more prompts than cancels" in capsys.readouterr().err
