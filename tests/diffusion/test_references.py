import pytest
import torch

from brickreel.diffusion.references import Placement, check_placements, parse_placements, place, prompts_by_loop

VIDEO, REFERENCE = (5, 2, 2), (3, 2, 2)  # frames, rows and columns of latents


def test_what_is_left_out_takes_the_originals_defaults():
    assert parse_placements("0") == [Placement(0, 0, 0, 0, 1, 0.0)]
    assert parse_placements("1,-1,-4,0,4,0.5; 0") == [Placement(1, -1, -4, 0, 4, 0.5), Placement()]
    assert parse_placements("") == []


@pytest.mark.parametrize("text", ["a", "0,0,0,0,1,0,0", "0.5", "0,0,0,0,0", "0,0,0,0,1,1.5"])
def test_a_wrong_strategy_is_refused_with_its_form(text):
    with pytest.raises(ValueError, match="mask strategy"):
        parse_placements(text)


def test_references_stand_where_they_are_placed():
    reference = torch.arange(3.0).view(1, 3, 1, 1).expand(4, 3, 2, 2) + 10
    placements = parse_placements("0,0,-2,0,2,0.25;0,0,0,-1,1;1,0,0,0,1")
    z, ratios = place(torch.zeros(4, 5, 2, 2), [reference], placements, 0)
    assert z[0, :, 0, 0].tolist() == [11, 12, 0, 0, 10]
    assert ratios.tolist() == [0.25, 0.25, 1, 1, 0]
    later, ratios = place(torch.zeros(4, 5, 2, 2), [reference], placements, 2)
    assert ratios is None
    assert not later.any()


def test_a_reference_that_is_to_be_ignored_is():
    reference, noise = torch.ones(4, 2, 2, 2), torch.zeros(4, 5, 2, 2)
    z, ratios = place(noise, [reference], parse_placements("0,0,0,0,2,1"), 0)
    assert ratios is None
    assert not z.any()
    z, ratios = place(noise, [reference], parse_placements("0,0,0,0,2,1;0,0,0,4,1,0.5"), 0)
    assert ratios.tolist() == [1, 1, 1, 1, 0.5]
    assert z[0, :, 0, 0].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,2", "reference 2 of 1"),
        ("0,3,0,0,1,1", "reference 3 of 1"),
        ("0,0,2,0,2", "of the reference"),
        ("0,0,0,4,2", "of the video"),
    ],
)
def test_what_is_not_there_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        check_placements(parse_placements(text), [REFERENCE], VIDEO)


def test_the_clip_of_the_loop_before_is_a_reference_and_is_not_counted_among_those_given():
    check_placements(parse_placements("0,0;1,1,0,0,5;1,-1,-2,0,2;2,2"), [REFERENCE], VIDEO)
    with pytest.raises(ValueError, match="reference 3 of 1"):
        check_placements(parse_placements("2,3"), [REFERENCE], VIDEO)
    with pytest.raises(ValueError, match="reference -2 of 0"):
        check_placements(parse_placements("1,-2"), [], VIDEO)


@pytest.mark.parametrize("text", ["2", "-1"])
def test_a_placement_for_a_loop_that_there_is_not_is_refused(text):
    assert parse_placements("1", 2) == [Placement(1)]
    with pytest.raises(ValueError, match=rf"is for loop {text}: loops here are 0 to 1"):
        parse_placements(text, 2)


def test_a_reference_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 2\] latents in size"):
        check_placements([Placement()], [(1, 3, 2)], VIDEO)


def test_prompts_change_from_loop_to_loop():
    assert prompts_by_loop("a car", 3) == ["a car"] * 3
    assert prompts_by_loop("|0|a car|2|a house", 4) == ["a car", "a car", "a house", "a house"]
    for wrong in ("|1|a car", "first|0|then"):
        with pytest.raises(ValueError, match=r"start with \|0\|"):
            prompts_by_loop(wrong, 2)
    with pytest.raises(ValueError, match="a text for loop 2: loops here are 0 to 1"):
        prompts_by_loop("|0|a car|2|a house", 2)
