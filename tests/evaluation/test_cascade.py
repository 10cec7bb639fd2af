"""The threshold's guarantee holds at the stated rate, an impossible one is reported, and escalation is minimal."""

import itertools
import math

import numpy as np
import pytest
import torch

from kd3.config.records import Signature
from kd3.evaluation.accuracy import Reliability, fit_temperature
from kd3.evaluation.cascade import Cascade, answers_of_both, images_needed, margins, measured
from kd3.models.student import own_head
from kd3.models.teacher import Teacher
from kd3.runtime.compute import resolve
from kd3.runtime.errors import KD3Error
from named_colours import SIDE, network, picture

SURE = 4.0  # scale of margins


def margins_of(draws, *, ties):
    margin = SURE * draws**2
    return (margin * 3).round() / 3 if ties else margin


def wrong_at(margin):
    """Probability of a disagreement with the teacher, which falls with the margin."""
    return 0.45 * torch.exp(-1.5 * margin) + 0.002


def student(images, generator, *, ties=False):
    margin = margins_of(torch.rand(images, generator=generator, dtype=torch.float64), ties=ties)
    return margin, torch.rand(images, generator=generator, dtype=torch.float64) >= wrong_at(margin)


def true_agreement(threshold, *, ties):
    """Of all images that there could be, not of a sample."""
    margin = margins_of((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000, ties=ties)
    return 100 * (1 - float((wrong_at(margin) * (margin >= threshold)).mean()))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("agreement", "confidence", "images"), [(95, 95, 200), (98, 80, 500), (99, 90, 1000)])
def test_promises_are_kept_at_the_stated_rate(agreement, confidence, images, ties):
    """Over many samples of held-out images the threshold gives less than it promised in at most 100% - confidence."""
    generator = torch.Generator().manual_seed(agreement * images)
    found = [Cascade(*student(images, generator, ties=ties)).threshold(agreement, confidence) for _ in range(300)]
    truth = {margin: true_agreement(margin, ties=ties) for margin in {one.margin for one in found}}
    broken = np.mean([truth[one.margin] < agreement for one in found])
    allowed = 1 - confidence / 100
    assert broken <= allowed + 2.5 * (allowed * (1 - allowed) / len(found)) ** 0.5


def test_the_plug_in_threshold_would_break_its_promise_in_half_of_the_samples():
    """The same search without the bound shows its purpose."""
    generator = torch.Generator().manual_seed(5)
    broken = 0
    for _ in range(100):
        cascade = Cascade(*student(500, generator))
        lost = np.cumsum(cascade.wrong) / cascade.count
        broken += true_agreement(cascade.margin[np.flatnonzero(lost <= 0.02)[-1]], ties=False) < 98
    assert broken > 35


@pytest.mark.parametrize("confidence", [80, 95])
def test_it_is_the_lowest_threshold_whose_bound_holds(confidence):
    """Against a slow loop over all thresholds."""
    from kd3.evaluation.accuracy import most

    for seed in range(5):
        margin, same = student(300, torch.Generator().manual_seed(seed), ties=seed % 2 == 0)
        found = Cascade(margin, same).threshold(95, confidence)
        fits = [
            float(at)
            for at in margin.unique()
            if most(int(((margin >= at) & ~same).sum()), len(margin), confidence / 100) <= 0.05 + 1e-12
        ]
        assert found.margin == pytest.approx(min(fits))
        kept = margin >= found.margin
        assert found.escalated == pytest.approx(100 * float((~kept).double().mean()))
        assert found.reached == pytest.approx(100 * float((same | ~kept).double().mean()))


def test_too_few_images_are_told_with_how_many_it_takes():
    margin, same = torch.linspace(1, 2, 298), torch.ones(298, dtype=torch.bool)
    assert images_needed(99, 95) == 299
    found = Cascade(margin, same).threshold(99, 95)
    assert (found.margin, found.escalated) == (None, 100)
    assert "299 images" in found.problem
    assert Cascade(torch.ones(299), torch.ones(299, dtype=torch.bool)).threshold(99, 95).margin == 0


def test_a_student_that_always_agrees_asks_nobody_and_one_that_never_does_asks_always():
    always = Cascade(torch.linspace(0, 3, 400), torch.ones(400, dtype=torch.bool)).threshold(98, 95)
    assert (always.margin, always.escalated, always.reached) == (0, 0, 100)
    never = Cascade(torch.ones(400), torch.zeros(400, dtype=torch.bool)).threshold(98, 95)
    assert (never.margin, never.escalated) == (None, 100)
    assert "surest" in never.problem


def test_the_curve_runs_from_the_student_alone_to_the_teacher_alone():
    margin, same = student(250, torch.Generator().manual_seed(1))
    curve = Cascade(margin, same).curve(95)
    assert (curve[0].escalated, curve[-1].escalated) == (0, 100)
    assert curve[0].agreement == pytest.approx(100 * float(same.double().mean()))
    assert (curve[-1].agreement, curve[-1].promised) == (100, 100)
    assert all(one.promised <= one.agreement for one in curve)
    assert all(a.agreement <= b.agreement + 1e-9 for a, b in itertools.pairwise(curve))


def test_a_margin_is_how_far_the_first_logit_is_ahead():
    logits = torch.tensor([[1.0, 5.0, 3.0], [2.0, 2.0, -9.0]])
    assert margins(logits).tolist() == [2.0, 0.0]
    assert margins(logits / 4).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_a_temperature_gives_back_the_scale_that_logits_had(scale):
    generator = torch.Generator().manual_seed(2)
    true = 2 * torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    answers = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(true * scale, answers)
    assert found == pytest.approx(scale, rel=0.06)
    assert Reliability.of(true * scale, answers, found).error_percent < 2.5


def test_a_temperature_stays_above_zero_where_every_answer_is_met():
    logits = torch.eye(4)[torch.arange(40) % 4] * 3
    met = 1 - 0.75 / 42  # the share of an answer: 41 of 42, and a quarter of the rest
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(3 / math.log(3 * met / (1 - met)), rel=1e-3)


def test_the_record_has_what_a_page_draws():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(500, 5, generator=generator)
    found = measured(logits, logits.argmax(1), agreements=[90, 98.5])
    assert [one["agreement"] for one in found["thresholds"]] == [90, 98.5]
    assert found["agreement_alone"] == 100
    assert sum(one["images"] for one in found["reliability"]["scaled"]) == 500
    assert found["temperature"] < 1


def both_networks(fit):
    """Perfect classifiers of three colours, whose classes have another order, and a picture of each."""
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3, "input_size": SIDE}
    small = own_head(network([0, 1, 2]), Signature(**plain, classes=["ash", "elm", "oak"]), name="small")
    large = Teacher(network([2, 0, 1]), **plain, fit=fit, classes=["oak", "ash", "elm"])
    images = torch.stack([torch.from_numpy(np.asarray(picture(kind)).transpose(2, 0, 1).copy()) for kind in (0, 1, 2)])
    return small, large, images


@pytest.mark.parametrize("fit", [None, "crop"])
def test_answers_are_compared_by_the_names_of_the_classes(fit):
    logits, answers = answers_of_both(*both_networks(fit), resolve("cpu", "32"))
    assert logits.argmax(1).tolist() == answers.tolist() == [0, 1, 2]


def test_a_teacher_that_is_described_with_other_pictures_is_refused():
    with pytest.raises(KD3Error, match="fit: squash but these images were made by crop"):
        answers_of_both(*both_networks("squash"), resolve("cpu", "32"))
