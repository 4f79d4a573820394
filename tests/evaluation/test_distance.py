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


def test_one_vector_or_video_is_too_few():
    with pytest.raises(ValueError, match="at least two"):
        distance.frechet(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="at least two"):
        distance.kernel([np.ones((9, 3))], list(np.ones((4, 1, 3))))
