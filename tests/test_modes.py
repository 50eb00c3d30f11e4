"""Coverage, balance and unreadable samples, in closed form and against simulated classifiers."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import entropy

from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import modes


def sure(labels, k, confidence=1.0):
    """Probabilities (n, k) of a classifier that says `labels` with that confidence and nothing else."""
    return confidence * np.eye(k)[labels]


def perfect(k, each=100):
    labels = np.repeat(np.arange(k), each)
    return modes.accuracy(sure(labels, k), labels, 0.5)


def test_accuracy_counts_readings_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    p = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.4, 0.3, 0.3], [0, 1, 0], [0, 0.45, 0.3], [0, 0, 0.5]])
    known = modes.accuracy(p, labels, 0.5)
    assert known.accuracy == pytest.approx(5 / 6) and known.unreadable == pytest.approx(2 / 6)
    np.testing.assert_array_equal(known.readings, [[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(known.counts, [3, 2, 1])
    assert known.images == 6


def test_balance_by_hand():
    shares = np.array([0.5, 0.25, 0.25])
    labels = np.repeat([0, 1, 2], [20, 10, 70])
    found = modes.modes(sure(labels, 3), shares, perfect(3))
    share = np.array([0.2, 0.1, 0.7])
    assert found.class_shares == pytest.approx(share)
    assert found.kl == pytest.approx(entropy(share, shares))
    assert found.entropy == pytest.approx(entropy(share)) and found.expected_entropy == pytest.approx(entropy(shares))
    assert found.total_variation == pytest.approx(0.45)
    assert found.kl_by_chance == pytest.approx(2 / 200)
    assert (found.covered, found.missing, found.images) == (3, (), 100)


def test_equal_shares_have_no_divergence_and_one_class_the_largest():
    k = 10
    shares = np.full(k, 1 / k)
    even = modes.modes(sure(np.arange(500) % k, k), shares, perfect(k))
    assert even.kl == pytest.approx(0, abs=1e-12) and even.total_variation == pytest.approx(0, abs=1e-12)
    one = modes.modes(sure(np.zeros(500, int), k), shares, perfect(k))
    assert one.kl == pytest.approx(np.log(k)) and one.total_variation == pytest.approx(0.9) and one.entropy == 0
    assert one.covered == 1 and one.missing == tuple("123456789")


def test_coverage_in_closed_form():
    even = modes.coverage(np.arange(3000) % 1000, 1000)
    assert (even.samples, even.modes, even.found, even.kl) == (3000, 1000, 1000, pytest.approx(0, abs=1e-12))
    assert even.kl_by_chance == pytest.approx(999 / 6000)
    one = modes.coverage(np.full(50, 7), 1000)
    assert one.found == 1 and one.kl == pytest.approx(np.log(1000))
    half = modes.coverage(2 * (np.arange(3000) % 500), 1000)
    assert half.found == 500 and half.kl == pytest.approx(np.log(2))
    shares = np.array([0.5, 0.25, 0.25])
    found = modes.coverage(np.repeat([0, 2], [30, 10]), 3, shares)
    assert found.found == 2 and found.kl == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(1))
    json.dumps(found.as_dict())


def test_coverage_of_26000_even_samples_is_that_of_chance():
    """What a perfect generator would have on Stacked MNIST."""
    draws = [modes.coverage(np.random.default_rng(i).integers(0, 1000, 26_000), 1000) for i in range(20)]
    assert all(draw.found == 1000 for draw in draws)
    assert np.mean([draw.kl for draw in draws]) == pytest.approx(draws[0].kl_by_chance, rel=0.03)  # sd of mean: 1 %


def test_labels_of_parts_are_the_digits_of_a_number():
    np.testing.assert_array_equal(modes.joined([[0, 0, 0], [1, 2, 3], [9, 0, 9]], 10), [0, 123, 909])
    every = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    np.testing.assert_array_equal(modes.joined(every, 4), np.arange(64))
    with pytest.raises(UserError, match=r"labels of parts are \(n, parts\) from 0 to 9"):
        modes.joined([[0, 10, 0]], 10)


@pytest.mark.parametrize(
    "labels, shares, message",
    [
        ([0, 3], None, "3 modes are 0 to 2, got values from 0 to 3"),
        ([-1], None, "got values from -1"),
        ([], None, "one or more, got an array of shape"),
        ([0.0], None, "whole numbers"),
        ([0], [0.5, 0.5, 0.0], "3 numbers above 0 that sum to 1"),
    ],
)
def test_coverage_refuses(labels, shares, message):
    with pytest.raises(UserError, match=message):
        modes.coverage(labels, 3, shares)


def test_kl_by_chance_is_what_samples_of_the_right_shares_have():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(10, 5.0))
    known = perfect(10)
    draws = [modes.modes(sure(rng.choice(10, 2000, p=shares), 10), shares, known) for _ in range(200)]
    assert np.mean([draw.kl for draw in draws]) == pytest.approx(draws[0].kl_by_chance, rel=0.15)  # sd of mean: 3 %


def test_unreadable_samples_count_for_no_class():
    p = np.concatenate([sure(np.zeros(30, int), 2), sure(np.ones(70, int), 2, confidence=0.49)])
    found = modes.modes(p, [0.5, 0.5], perfect(2))
    assert found.unreadable == pytest.approx(0.7) and found.class_shares == (1.0, 0.0) and found.missing == ("1",)


def test_nothing_readable():
    found = modes.modes(sure(np.zeros(10, int), 3, confidence=0.2), np.full(3, 1 / 3), perfect(3), "abc")
    assert found.unreadable == 1 and found.covered == 0 and found.missing == ("a", "b", "c")
    assert found.total_variation == 1 and found.kl == np.inf
    assert found.as_dict()["kl"] is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_record_holds_every_field_and_is_json():
    found = modes.modes(sure(np.arange(100) % 4, 4), np.full(4, 0.25), perfect(4), "abcd")
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert set(record) == {field.name for field in dataclasses.fields(modes.Modes)}
    assert record["real_accuracy"] == 1 and record["real_images"] == 400 and record["class_shares"] == [0.25] * 4


@pytest.mark.parametrize("lost", [0, 1, 3, 9])
def test_coverage_is_exact_for_a_classifier_that_errs(lost):
    """2 % are misread, most of them as one class: a class of misreadings alone is not there, one of samples is."""
    rng = np.random.default_rng(lost)
    k = 10
    rates = np.full((k, k), 0.005 / (k - 2))
    rates[:, 9], rates[9, :] = 0.015, 0.02 / (k - 1)
    np.fill_diagonal(rates, 0)
    np.fill_diagonal(rates, 1 - rates.sum(axis=1))

    def read(labels):
        return (rng.random(len(labels))[:, None] > rates[labels].cumsum(axis=1)).sum(axis=1).clip(max=k - 1)

    real = np.repeat(np.arange(k), 500)
    known = modes.accuracy(sure(read(real), k), real, 0.5)
    kept = np.arange(k - lost)  # the class that others are taken for is lost first
    for _ in range(20):
        found = modes.modes(sure(read(rng.choice(kept, 4000)), k), np.full(k, 1 / k), known)
        assert found.covered == k - lost, found


def test_least_count_is_the_smallest_that_chance_does_not_give():
    """Against draws: rates from their gamma distributions, misreadings from these."""
    k, rng = 4, np.random.default_rng(1)
    labels = np.repeat(np.arange(k), 1000)
    answers = labels.copy()
    answers[:20], answers[1000:1005] = 3, 3  # 20 of 1000 of class 0 and 5 of class 1
    known = modes.accuracy(sure(answers, k), labels, 0.5)
    least = modes.least_counts(np.array([500, 300, 0, 0]), known)[3]
    rates = [rng.gamma(misread + 1 / k, 1 / 1001, 400_000) for misread in (20, 5)]
    drawn = rng.poisson(500 * rates[0] + 300 * rates[1])
    # The sum of two gamma distributions is only nearly one: within one sample of the exact limit.
    assert (drawn >= least + 1).mean() <= modes.CHANCE / k <= (drawn >= least - 2).mean()
    assert modes.least_counts(np.zeros(k, int), known).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "p, shares, message",
    [
        (np.ones((3, 2)), [0.5, 0.5], "softmax"),
        (np.array([[np.nan, 0.5]]), [0.5, 0.5], "softmax"),
        (np.array([[-0.1, 0.5]]), [0.5, 0.5], "softmax"),
        (np.zeros((0, 2)), [0.5, 0.5], "one row for each image"),
        (np.zeros(5), [0.5, 0.5], "one row for each image"),
        (np.zeros((5, 2)), [0.5, 0.6], "sum to 1"),
        (np.zeros((5, 2)), [1.0, 0.0], "above 0"),
        (np.zeros((5, 3)), [0.2, 0.3, 0.5], "in 3 classes and the real images in 2"),
    ],
)
def test_bad_input_is_told(p, shares, message):
    with pytest.raises(UserError, match=message):
        modes.modes(p, shares, perfect(2))


@pytest.mark.parametrize("labels", [np.array([0, 2]), np.array([0.0, 1.0]), np.array([0]), np.array([-1, 0])])
def test_bad_labels_are_told(labels):
    with pytest.raises(UserError, match="whole numbers from 0 to 1"):
        modes.accuracy(sure(np.array([0, 1]), 2), labels, 0.5)
