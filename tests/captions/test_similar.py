import numpy as np

from brickreel.captions import similar

WORDS = [f"word{number}" for number in range(400)]


def sentence(generator, length=30):
    return " ".join(generator.choice(WORDS, length))


def test_equal_and_nearly_equal_captions_are_one_group():
    base = "A red figure walks over the green baseplate to a small blue house with a white door and waves at it"
    texts = [base, "Something else entirely happens on a grey street at night.", base.upper() + ".", base[:-6]]
    assert similar.groups(texts) == [[0, 2, 3]]


def test_groups_are_connected_and_the_largest_comes_first():
    generator = np.random.default_rng(0)
    one, other = sentence(generator), sentence(generator)
    assert similar.groups([one, other, one, other, other]) == [[1, 3, 4], [0, 2]]


def test_unlike_captions_are_in_no_group():
    generator = np.random.default_rng(1)
    assert similar.groups([sentence(generator) for _ in range(300)]) == []
    assert similar.groups([]) == []


def test_pairs_are_found_and_only_such_pairs():
    generator = np.random.default_rng(2)
    texts, pairs = [], 0
    for _ in range(150):
        text = sentence(generator, 60)
        words = text.split()
        # One replaced word changes three of 58 triples: similarity 55/61 = 0.9.
        words[30] = "another"
        texts += [text, " ".join(words)]
        pairs += 1
    groups = similar.groups(texts)
    assert len(groups) >= 0.98 * pairs
    assert all(len(group) == 2 and group[1] == group[0] + 1 and group[0] % 2 == 0 for group in groups)


def test_short_captions_are_compared_whole():
    assert similar.groups(["a cat", "a dog", "A cat.", ""]) == [[0, 2]]
