"""The verdict's words for made-up measurements."""

from kd3.evaluation.shift_distances import AtEqualSize, Estimate, FeatureDistance, FeatureShift
from kd3.evaluation.shift_statistics import Kept, LayerShift, Opinions, summed_up
from kd3.evaluation.shift_verdict import forecast, hardly_covered, judge

CLASSES = ["cat", "ship", "truck"]


def opinions(predicted, effective=2.9, confident_share=0.5):
    images = sum(predicted)
    confident = [round(count * confident_share) for count in predicted]
    return Opinions(
        images=images,
        classes=CLASSES,
        mean_confidence=0.8,
        confidence_quantiles={"0.5": 0.8},
        mean_entropy=0.4,
        entropy_share=0.36,
        predicted=predicted,
        confident=confident,
        confident_share=confident_share,
        effective_classes=effective,
    )


def norms(mean, last=0.02):
    """Four layers of this mean distance, the last three of that of their own."""
    first = 4 * mean - 3 * last
    return summed_up([LayerShift("a", 4, first, 0.0), *[LayerShift(name, 4, last, 0.0) for name in "bcd"]])


def kept(share=0.5, rescued=()):
    return Kept(share=share, per_class=[1, 1, 1], rescued=list(rescued))


EVEN = [9_000, 10_000, 11_000]


def test_original_images_are_near_however_unsure_the_teacher_is():
    for share in (0.0, 0.16, 1.0):
        verdict = judge(opinions(EVEN, effective=2.98, confident_share=share), kept(share), norms(0.025))
        assert verdict.level == "near"
        assert "near the teacher's training data; every class is covered." in verdict.sentence
        assert verdict.forecast.low > 0.9


def test_the_verdict_is_the_same_for_a_sure_and_an_unsure_teacher():
    verdicts = [judge(opinions(EVEN, confident_share=share), kept(), norms(0.09)) for share in (0.01, 0.99)]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].level == "shifted"


def test_the_level_follows_the_mean_distance_of_all_layers():
    levels = [judge(opinions(EVEN), kept(), norms(mean)).level for mean in (0.0, 0.03, 0.08, 0.25, 0.4)]
    assert levels == ["near", "near", "shifted", "far", "far"]


def test_far_last_layers_of_a_near_pool_are_told_and_do_not_decide():
    verdict = judge(opinions(EVEN), kept(), norms(0.03, last=0.04))
    assert verdict.level == "near"
    assert "0.040 in the last layers" in verdict.reasons[0]


def test_a_pool_of_one_class_is_far_though_its_layers_are_near():
    verdict = judge(opinions([29_990, 5, 5], effective=1.02), kept(), norms(0.02))
    assert verdict.level == "far"
    assert "farther than any pool that was tried: expect no more than" in verdict.sentence
    assert "classes ship and truck are hardly covered" in verdict.sentence


def test_a_class_is_hardly_covered_below_a_tenth_of_its_share_by_prediction():
    assert hardly_covered(opinions([14_000, 15_001, 999])) == ["truck"]
    assert hardly_covered(opinions([14_000, 15_000, 1_000], confident_share=0.0)) == []
    assert "class truck is hardly covered" in judge(opinions([15_000, 15_000, 0]), kept(), norms(0.02)).sentence


def test_a_teacher_without_batch_norms_is_told_of_and_nothing_is_foretold():
    verdict = judge(opinions(EVEN), kept(), None)
    assert (verdict.level, verdict.forecast) == ("unknown", None)
    assert "cannot be compared" in verdict.sentence
    assert "the teacher has no batch norm with running statistics" in verdict.reasons[0]


def test_rescued_classes_are_named():
    reasons = " ".join(judge(opinions([15_000, 0, 15_000]), kept(rescued=["ship"]), None).reasons)
    assert "class ship would keep none" in reasons


def test_chance_is_told_from_a_shift():
    def words(mean, same):
        equal = AtEqualSize(50, 5, mean, mean, mean, same)
        distances = [FeatureDistance("frechet", Estimate(mean, 0, 9), equal)]
        shift = FeatureShift("saved.zip", 100, 100, "64 pooled features", distances, [], {})
        return judge(opinions(EVEN), kept(), None, shift).reasons[-1]

    assert "no shift can be told" in words(1.2, 1.0)
    assert "no shift can be told" in words(1.5, 1.0)
    assert "no shift can be told" in words(2.9, 2.0)
    assert "where two draws of one side give 1" in words(1.6, 1.0)
    assert "where two draws of one side give 0.2" in words(0.4, 0.2)
    assert "where two draws of one side give 1" in words(5.0, 1.0)
    assert "too few images" in words(5.0, None)


def test_the_worst_layer_is_the_farthest():
    layers = [LayerShift("x", 4, 0.2, 0.0), LayerShift("y", 4, 0.7, 0.0), LayerShift("z", 4, 0.1, 0.0)]
    assert summed_up(layers).worst == "y"


def test_the_sentence_says_the_range_that_is_foretold():
    for mean in (0.02, 0.07):
        verdict = judge(opinions(EVEN), kept(), norms(mean))
        low, high = 100 * verdict.forecast.low, 100 * verdict.forecast.high
        assert low + 2 < high
        assert f"is expected to reach {low:.0f} to {high:.0f}% of the teacher's accuracy" in verdict.sentence
    beyond = judge(opinions([29_990, 5, 5], effective=1.02), kept(), norms(0.02))
    assert f"expect no more than {100 * beyond.forecast.high:.0f}% of" in beyond.sentence


def test_small_shares_keep_their_digits():
    said = [judge(opinions(EVEN), kept(share), None).reasons[-1] for share in (0.0, 0.0042, 0.0142, 0.256)]
    assert [words.partition("keep ")[2].partition(" of")[0] for words in said] == ["0%", "0.42%", "1%", "26%"]


def test_of_many_classes_some_are_named_and_all_are_counted():
    names = [f"c{number}" for number in range(9)]
    few = judge(opinions(EVEN), kept(rescued=names[:8]), None).reasons[-1]
    assert "classes c0, c1, c2, c3, c4, c5, c6 and c7 would keep none" in few
    many = judge(opinions(EVEN), kept(rescued=names), None).reasons[-1]
    assert "classes c0, c1, c2, c3, c4, c5, c6, c7, ... (9 in all) would keep none" in many


def test_of_a_sample_the_size_of_the_whole_pool_counts():
    sample = opinions([90, 100, 110])
    said = [judge(sample, kept(), norms(0.05), pool_images=count).forecast for count in (None, 300, 300_000)]
    assert said[0] == said[1]
    assert said[2].expected > said[0].expected
    assert said[2] == forecast(norms(0.05).mean, 2.9, classes=3, images=300_000)
