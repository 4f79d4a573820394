import json

import pytest

import parity
from brickreel.models.prompt import clean_prompt

CASES = json.loads((parity.FOLDER / "caption_clean_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "_once", "twice"), CASES)
def test_prompts_are_cleaned_as_the_original_does(text, _once, twice):
    assert clean_prompt(text) == twice


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a < b & c", "a < b c"),
        ("a <b>bold</b> tower", "a bold tower"),
        ("a <b", "a <b"),
        ("<!doctype a> car", "car"),
        ("100%ff", "100\ufffd"),
        ("a &#55357; car", "a \ufffd car"),
    ],
)
def test_text_that_only_looks_like_a_page_loses_its_tags_and_nothing_else(text, cleaned):
    assert clean_prompt(text) == cleaned
