import time

import numpy as np
import pytest
from scipy import linalg

from brickreel.evaluation import distance


@pytest.mark.parametrize(("first", "second"), [(200, 150), (5, 7), (40, 6)])
def test_frechet_equals_the_textbook_formula(first, second):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(first, 8)), rng.normal(1, 2, size=(second, 8))
    s1, s2 = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(s1 @ s2).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    assert distance.frechet(a, b) == pytest.approx(expected, rel=1e-3)


def test_frechet_is_zero_for_the_same_set_and_grows_with_the_shift():
    a = np.random.default_rng(0).normal(size=(50, 6))
    values = [distance.frechet(a, a + shift) for shift in (0, 0.5, 1, 2)]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values == sorted(values)
    assert values[2] == pytest.approx(6)


def test_kernel_distance_has_no_bias_in_small_sets_where_frechet_has():
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 4))) for _ in range(300)]
    kernel = np.array([distance.kernel(list(a[:, None]), list(b[:, None])) for a, b in pairs])
    assert abs(kernel.mean()) < 3 * kernel.std() / np.sqrt(len(kernel))
    assert np.mean([distance.frechet(a, b) for a, b in pairs]) > 0.5


def test_kernel_distance_grows_with_the_shift():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    values = [distance.kernel(list(a[:, None]), list(b[:, None] + shift)) for shift in (0, 1, 2)]
    assert values == sorted(values)


@pytest.mark.parametrize("videos", [3, 24])
def test_kernel_distance_has_no_bias_where_the_poses_of_a_video_are_alike(videos):
    rng = np.random.default_rng(3)

    def drawn():
        return [rng.normal(size=4) + 0.05 * rng.normal(size=(16, 4)) for _ in range(videos)]

    found = np.array([distance.kernel(drawn(), drawn()) for _ in range(200)])
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(len(found))


def plain_kernel(first, second):
    """As the paper has it: every pair of two videos, none of one."""

    def mean(left, right, alike):
        pairs = [(i, j) for i in range(len(left)) for j in range(len(right)) if not (alike and i == j)]
        values = [(left[i].astype(float) @ right[j].T.astype(float) / left[i].shape[1] + 1) ** 3 for i, j in pairs]
        return sum(value.sum() for value in values) / sum(value.size for value in values)

    return mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)


def plain_frechet(first, second):
    """By the centred vectors themselves."""
    a, b = (np.concatenate(side).astype(float) for side in (first, second))
    x, y = ((side - side.mean(0)) / np.sqrt(len(side) - 1) for side in (a, b))
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * cross


@pytest.mark.parametrize("poses", [3, 40])
@pytest.mark.parametrize(
    ("plain", "fast"),
    [(plain_kernel, distance.kernel_left_out), (plain_frechet, distance.frechet_left_out)],
)
def test_each_group_left_out_gives_what_the_rest_alone_gives(poses, plain, fast):
    rng = np.random.default_rng(4)
    scale = rng.uniform(0, 2, 24) * (np.arange(24) > 2)  # some features never answer, as of a network's dead units

    def drawn(videos, shift):
        centres = rng.normal(shift, size=(videos, 24))
        return [(c + rng.normal(size=(poses + n % 2, 24))) * scale for n, c in enumerate(centres)]

    groups = [[video.astype(np.float32) for video in drawn(1 + n % 3, 0.3)] for n in range(7)]
    references = [drawn(5, 0), drawn(4, 0.1)]

    def mean(chosen):
        return np.mean([plain([video for group in chosen for video in group], side) for side in references])

    found = fast(groups, references)
    assert found.value == pytest.approx(mean(groups), rel=1e-9)
    expected = [mean([*groups[:n], *groups[n + 1 :]]) for n in range(7)]
    assert found.without == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("fast", [distance.kernel_left_out, distance.frechet_left_out])
def test_too_few_without_a_group_is_no_number(fast):
    rng = np.random.default_rng(5)
    reference = list(rng.normal(size=(4, 1, 3)))
    alone = fast([list(rng.normal(size=(3, 2, 3)))], [reference])
    assert np.isfinite(alone.value)
    assert np.isnan(alone.without).all()
    found = fast([list(rng.normal(size=(1, 1, 3))), list(rng.normal(size=(4, 1, 3)))], [reference])
    assert np.isfinite(found.without).tolist() == [True, False]
    assert np.isnan(fast([reference, reference], [reference[:1]]).value)


def test_many_prompts_take_seconds():
    rng = np.random.default_rng(6)
    groups = [[rng.normal(size=(16, 128)).astype("f4")] for _ in range(128)]
    references = [list(rng.normal(size=(32, 16, 128))) for _ in range(2)]
    began = time.process_time()
    distance.kernel_left_out(groups, references)
    distance.frechet_left_out(groups, references)
    assert time.process_time() - began < 20


def test_one_vector_or_video_is_too_few():
    with pytest.raises(ValueError, match="at least two"):
        distance.frechet(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="at least two"):
        distance.kernel([np.ones((9, 3))], list(np.ones((4, 1, 3))))
