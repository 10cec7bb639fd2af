"""The verdict's words for made-up measurements."""

from kd3.domain_shift.batch_norms import LayerShift, summed_up
from kd3.domain_shift.bootstrap import Estimate
from kd3.domain_shift.comparison import AtEqualSize, FeatureDistance, FeatureShift
from kd3.domain_shift.opinions import Kept, Opinions
from kd3.domain_shift.verdict import hardly_covered, judge

CLASSES = ["cat", "ship", "truck"]


def opinions(confident, images=300, effective=2.9):
    return Opinions(
        images=images,
        classes=CLASSES,
        mean_confidence=0.8,
        confidence_quantiles={"0.5": 0.8},
        mean_entropy=0.4,
        entropy_share=0.36,
        predicted=[100, 100, 100],
        confident=confident,
        confident_share=sum(confident) / images,
        effective_classes=effective,
    )


def norms(distance):
    return summed_up([LayerShift("a", 4, 0.0, 0.0), *[LayerShift(name, 4, distance, 0.0) for name in "bcd"]])


def kept(share=0.5, rescued=()):
    return Kept(share=share, per_class=[1, 1, 1], rescued=list(rescued))


def test_a_pool_with_two_of_three_classes_missing_is_far():
    verdict = judge(opinions([91, 1, 1]), kept(), norms(0.01))
    assert verdict.level == "far"
    assert verdict.sentence == (
        "This pool is far from what the teacher was trained on: 31 % of it is usable; "
        "classes ship and truck are hardly covered."
    )
    assert verdict.hardly_covered == ["ship", "truck"]


def test_one_class_missing_is_told_in_the_singular():
    assert "class truck is hardly covered" in judge(opinions([80, 80, 1]), kept(), None).sentence


def test_a_near_pool():
    verdict = judge(opinions([80, 70, 60]), kept(0.8), norms(0.01))
    assert verdict.level == "near"
    assert "70 % of it is usable; every class is covered" in verdict.sentence


def test_the_last_layers_alone_can_be_shifted_or_far():
    assert judge(opinions([80, 70, 60]), kept(), norms(0.6)).level == "far"
    assert judge(opinions([80, 70, 60]), kept(), norms(0.1)).level == "shifted"


def test_the_worse_of_all_layers_and_the_last_ones_counts():
    few = [LayerShift(str(place), 4, 0.0, 0.0) for place in range(12)]
    early = summed_up([LayerShift(str(place), 4, 3.0, 0.0) for place in range(3)] + few)
    late = summed_up([*few, *[LayerShift(str(place), 4, 0.5, 0.0) for place in range(3)]])
    assert early.last < 0.05 < 0.15 < early.mean
    assert late.mean < 0.15 < late.last
    for norms_ in (early, late):
        assert judge(opinions([80, 70, 60]), kept(), norms_).level == "far"
        assert "its layers are far" in " ".join(judge(opinions([80, 70, 60]), kept(), norms_).reasons)


def test_little_that_is_usable_or_few_classes_are_far():
    assert judge(opinions([2, 2, 2]), kept(), norms(0.01)).level == "far"
    assert judge(opinions([80, 70, 60], effective=1.1), kept(), norms(0.01)).level == "far"


def test_a_teacher_without_batch_norms_is_told_of():
    reasons = " ".join(judge(opinions([80, 70, 60]), kept(), None).reasons)
    assert "the teacher has no batch norm with running statistics" in reasons


def test_rescued_classes_are_named():
    assert "class ship would keep none" in judge(opinions([80, 0, 60]), kept(rescued=["ship"]), None).reasons[0]


def test_a_tenth_of_an_even_share_covers_a_class_and_less_does_not():
    assert hardly_covered(opinions([10, 145, 145])) == []
    assert hardly_covered(opinions([9, 146, 145])) == ["cat"]


def test_the_worst_layer_is_the_farthest():
    assert norms(0.1).worst == "b"
    assert (
        summed_up([LayerShift("x", 4, 0.2, 0.0), LayerShift("y", 4, 0.7, 0.0), LayerShift("z", 4, 0.1, 0.0)]).worst
        == "y"
    )


def test_no_confident_image_at_all_covers_no_class():
    assert hardly_covered(opinions([0, 0, 0])) == CLASSES


def test_chance_is_told_from_a_shift():
    def words(mean, same):
        equal = AtEqualSize(50, 5, mean, mean, mean, same)
        distances = [FeatureDistance("frechet", Estimate(mean, 0, 9), equal)]
        shift = FeatureShift("saved.zip", 100, 100, "64 pooled features", distances, [], {})
        return judge(opinions([80, 70, 60]), kept(), None, shift).reasons[-1]

    assert "no shift can be told" in words(1.2, 1.0)
    assert "no shift can be told" in words(1.5, 1.0)
    assert "where two draws of one side give 1" in words(1.6, 1.0)
    assert "where two draws of one side give 1" in words(5.0, 1.0)
    assert "too few images" in words(5.0, None)
