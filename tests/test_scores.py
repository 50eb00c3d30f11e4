"""Which of two generators is better, by each metric; which of the steps of a run was best."""

import typing

import numpy as np
import pytest

from ganstyle_jax.judge import compare, scores, settings
from ganstyle_jax.judge.metrics import distances, similarity

PROTOCOL = {"features": "compact", "real": {"source": "glyphs", "count": 64}, "fake": {"count": 64}, "seed": 0}


def record(step, score, metric="fid", **protocol):
    return {"step": step, "score": score, "score_of": metric, "metrics": {}, "protocol": PROTOCOL | protocol}


def worse_than(metric, worse, better):
    return scores.score(metric, worse)["score"] > scores.score(metric, better)["score"]


def test_every_metric_has_a_score():
    assert set(scores.SCORES) == set(compare.MEASURES) == set(settings.METRICS)
    assert {score.better for score in scores.SCORES.values()} == set(typing.get_args(typing.Literal["lower", "higher"]))


def test_noise_around_everything_does_not_win_by_its_recall():
    rng = np.random.default_rng(0)
    real, good, noise = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) * 40
    found = {}
    for name, fake in (("good", good), ("noise", noise)):
        precision, recall = distances.precision_recall(real, fake)
        found[name] = {"precision": precision, "recall": recall}
        found[name] |= dict(zip(("density", "coverage"), distances.density_coverage(real, fake), strict=True))
    assert (
        found["noise"]["recall"] >= found["good"]["recall"] and found["noise"]["precision"] < 0.1
    )  # it would have won
    assert worse_than("precision_recall", found["noise"], found["good"])
    assert worse_than("density_coverage", found["noise"], found["good"])
    one = {"precision": 1.0, "recall": 0.01, "density": 9.0, "coverage": 0.01}  # a good picture again and again
    assert worse_than("precision_recall", one, found["good"]) and worse_than("density_coverage", one, found["good"])
    assert scores.score("precision_recall", {"precision": 0.0, "recall": 0.0})["score"] == 0
    assert scores.score("precision_recall", {"precision": 0.5, "recall": 1.0})["score"] == pytest.approx(-2 / 3)
    assert scores.score("density_coverage", {"density": 2.0, "coverage": 0.5})["score"] == pytest.approx(-2 / 3)


def test_noise_does_not_win_by_the_unlikeness_of_its_pairs():
    rng = np.random.default_rng(0)

    def of(images):
        return similarity.ms_ssim_diversity(images, pairs=20)[0]

    shapes = rng.integers(0, 256, (24, 4, 4, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    others = rng.integers(0, 256, (24, 4, 4, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    noise = rng.integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
    same = np.broadcast_to(shapes[:1], shapes.shape)
    good, bad, collapsed = ({"ms_ssim": of(x), "ms_ssim_of_real": of(shapes)} for x in (others, noise, same))
    assert worse_than("ms_ssim", bad, good) and worse_than("ms_ssim", collapsed, good)
    assert worse_than("ms_ssim", {"ms_ssim": 0.025, "ms_ssim_of_real": 0.2}, {"ms_ssim": 0.25, "ms_ssim_of_real": 0.2})


def test_one_readable_character_does_not_win():
    one = {"glyphs_unreadable": 0.0, "glyphs_total_variation": 0.97}
    all_of_them = {"glyphs_unreadable": 0.1, "glyphs_total_variation": 0.05}
    noise = {"glyphs_unreadable": 1.0, "glyphs_total_variation": 1.0}
    assert worse_than("glyphs", one, all_of_them) and worse_than("glyphs", noise, one)


@pytest.mark.parametrize("metric, better", [("fid", 1.0), ("kid", 0.1), ("sliced_wasserstein", 3.0)])
def test_distances_are_better_when_low(metric, better):
    assert worse_than(metric, {metric: 2 * better}, {metric: better})
    assert scores.score(metric, {metric: better}) == {"score": better, "score_of": metric}


def test_the_inception_score_is_better_when_high():
    assert worse_than("inception_score", {"inception_score": 2.0}, {"inception_score": 8.0})


def test_the_best_step():
    assert scores.best([]) is None
    assert scores.best([record(1, 3.0), record(2, 1.0), record(3, 2.0)]) == 2
    assert scores.best([record(1, 1.0), record(2, 1.0)]) == 1
    assert scores.best([record(1, 0.5), record(2, 1.0), record(1, 3.0)]) == 2  # of a step the last record counts


@pytest.mark.parametrize(
    "earlier",
    [
        record(1, -0.9, "inception_score"),
        record(1, 0.1, features="inception"),
        record(1, 0.1, real={"source": "glyphs", "count": 9}),
        record(1, 0.1, fake={"count": 64, "weights": "last"}),
        {"step": 1, "score": 0.1, "metrics": {}, "protocol": PROTOCOL},  # of a version that did not say of what
    ],
)
def test_what_was_measured_in_another_way_before_does_not_count(earlier):
    assert scores.best([earlier, record(2, 7.0), record(3, 5.0)]) == 3
    assert scores.best([earlier, record(2, 7.0, seed=5)]) == 2  # another seed is the same way
    assert scores.best([record(2, 7.0), earlier]) == 1


def test_lines_that_are_no_records_are_passed_over():
    lines = [None, 3, "text", [], {}, {"step": 1}, {"score": 1.0}, record(None, 0.0), record(2, float("nan"))]
    lines += [record(3, None), record(4, "0"), record(5, True), record(6, 2.0) | {"protocol": 3}]
    assert scores.best(lines) == 6
    assert scores.best([*lines, record(7, 5.0)]) == 7
