"""From a study's file to its runs."""

import pytest

from kd3.config.distill import DistillConfig
from kd3.config.published import studies
from kd3.config.settings import build, merge
from kd3.runtime.errors import KD3Error
from kd3.studies.plan import StudyFile, plan, read_study, slug

GIVEN = {"teacher": "t.yaml", "student": "kd3:resnet8", "pool": "-"}
ALL_POOLS = ["crawl", "original", "other"]


def study(**values):
    return build(StudyFile, {"title": "a study", "seeds": [0, 1], "images": 1000, **values}, where="test")


def planned(have=ALL_POOLS, only=(), given=GIVEN, given_pools=(), **values):
    return plan(study(given=list(given_pools), **values), given, have, only=only)


def test_the_first_seed_of_every_row_comes_before_the_second_of_any():
    cells = planned(rows=[{"name": "a"}, {"name": "b", "seeds": [5]}, {"name": "c"}]).cells
    assert [(cell.row, cell.seed) for cell in cells] == [("a", 0), ("b", 5), ("c", 0), ("a", 1), ("c", 1)]


def test_settings_lie_over_one_another_rows_on_top():
    cells = planned(
        common={"method": "kd3", "kd3": {"logit_weight": 0.8, "temperature": 2}},
        rows=[{"name": "a", "settings": {"kd3": {"logit_weight": 0.5}}}],
        given={**GIVEN, "train": {"images": 64}},
    ).cells
    assert cells[0].settings["kd3"] == {"logit_weight": 0.5, "temperature": 2}
    assert cells[0].settings["train"]["images"] == 64
    assert [cell.settings["seed"] for cell in cells] == [0, 1]


def test_a_dial_makes_a_row_of_each_value_with_more_seeds_at_its_ends():
    row = {"name": "weight", "vary": {"kd3.logit_weight": [0.1, 0.5, 0.9]}, "seeds": [0], "seeds_at_ends": [0, 1, 2]}
    result = planned(rows=[row])
    assert result.rows == ["weight, logit_weight 0.1", "weight, logit_weight 0.5", "weight, logit_weight 0.9"]
    counts = {name: sum(cell.row == name for cell in result.cells) for name in result.rows}
    assert list(counts.values()) == [3, 1, 3]
    assert {cell.x for cell in result.cells} == {0.1, 0.5, 0.9}
    assert {cell.series for cell in result.cells} == {"weight"}
    assert result.cells[1].settings["kd3"]["logit_weight"] == 0.5


def test_a_dial_on_the_pool_makes_pools():
    rows = [{"name": method, "vary_pool": {"share": [0.1, 1.0]}} for method in ("KD3", "KD")]
    result = planned(rows=rows)
    assert len(result.recipes) == 1  # both rows share the tenth, and the whole crawl is the crawl
    assert [cell.pool for cell in result.cells[:2]] == [*result.recipes, "crawl"]
    assert next(iter(result.recipes.values())).share == 0.1


def test_a_study_may_name_pools_of_its_own_that_the_user_gives():
    rows = [{"name": "a"}, {"name": "b", "pool": "sketch"}, {"name": "c", "pool": {"mixed_with": "photo"}}]
    result = planned(have=["crawl", "sketch"], rows=rows, given_pools=["sketch", "photo"])
    assert result.rows == ["a", "b"]
    assert result.left_out == ["c"]
    with pytest.raises(KD3Error, match="unknown pool 'sketsh'; did you mean 'sketch'"):
        planned(have=["crawl", "sketsh"], rows=rows, given_pools=["sketch", "photo"])
    with pytest.raises(KD3Error, match="unknown pool of the study 'sketch'"):
        planned(rows=rows[:2])


def test_pools_are_made_from_pools_and_only_those_in_use():
    pools = {
        "small": {"share": 0.5},
        "blurred": {"source": "small", "change": "blur", "strength": 0.1},
        "unused": {"share": 0.2},
    }
    assert set(planned(pools=pools, rows=[{"name": "a"}]).recipes) == set()
    result = planned(have=["crawl"], pools=pools, rows=[{"name": "a", "pool": "blurred"}])
    assert set(result.recipes) == {"small", "blurred"}


def test_rows_that_need_a_pool_that_was_not_given_are_left_out():
    rows = [{"name": "a"}, {"name": "bound", "pool": "original"}, {"name": "c", "pool": {"mixed_with": "other"}}]
    result = planned(have=["crawl"], rows=rows)
    assert result.rows == ["a"]
    assert result.left_out == ["bound", "c"]
    with pytest.raises(KD3Error, match="no row of the study can run"):
        planned(have=["crawl"], rows=rows[1:])


def test_rows_can_be_chosen_by_name_or_series():
    tau = {"settings": {"kd3": {"selection": "dynamic"}}, "vary": {"kd3.threshold": [0.1, 0.5]}}
    rows = [{"name": "a"}, {"name": "tau", **tau}]
    assert planned(rows=rows, only=["a"]).rows == ["a"]
    assert planned(rows=rows, only=["tau"]).rows == ["tau, threshold 0.1", "tau, threshold 0.5"]
    with pytest.raises(KD3Error, match="did you mean 'tau'"):
        planned(rows=rows, only=["tua"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rows": [{"name": "a", "settings": {"method": "kd33"}}]}, r"row 'a' of the study.*unknown method 'kd33'"),
        ({"rows": [{"name": "a", "settings": {"kd3": {"treshold": 1}}}]}, r"treshold.*did you mean"),
        ({"rows": [{"name": "a", "settings": {"train": {"images": 500}}}]}, "has a budget of its own"),
        ({"rows": [{"name": "a", "settings": {"train": {"images": None, "epochs": 2}}}]}, "has a budget of its own"),
        ({"rows": [{"name": "a b"}, {"name": "A, B"}]}, "share a folder: 'a b' and 'A, B'"),
        ({"rows": [{"name": "a", "pool": "nowhere"}]}, "pool of the study 'nowhere'"),
        ({"rows": [{"name": "a", "pool": "x"}], "pools": {"x": {"source": "x"}}}, "'x' .* is made from itself"),
        ({"rows": [{"name": "a"}], "pools": {"crawl": {}}}, "'crawl' is the name of a pool that the user gives"),
        ({"rows": [{"name": "a", "settings": {"seed": 3}}]}, "pool and seeds stand beside 'settings'"),
        ({"rows": [{"name": "a", "vary": {"kd3.threshold": [2]}}]}, r"threshold 2.*less than or equal to 1"),
        ({"rows": []}, "rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_runs(values, words):
    with pytest.raises(KD3Error, match=words):
        planned(**values)


@pytest.mark.parametrize("name", studies())
def test_the_studies_that_come_with_kd3_are_sound(name):
    found = read_study(name)
    result = plan(found, GIVEN, found.given_names)
    assert not result.left_out
    for cell in result.cells:
        build(DistillConfig, merge({"out": "-"}, cell.settings), where=cell.row)
    assert len({cell.name for cell in result.cells}) == len(result.cells)


def test_a_preset_gives_a_row_all_but_its_budget():
    rows = [
        {"name": "paper", "settings": {"preset": "paper", "kd3": {"threshold": 0.5}}},
        {"name": "KD", "settings": {"method": "kd"}},
    ]
    common = {"train": {"lr": 0.2}, "kd3": {"balance": 0.5}}
    paper, kd = planned(
        common=common, rows=rows, given={**GIVEN, "precision": "auto", "train": {"images": 5000}}
    ).cells[:2]
    assert paper.settings["method"] == "kd3"
    assert paper.settings["kd3"]["threshold"] == 0.5
    assert paper.settings["kd3"]["balance"] == 0.5
    assert (paper.settings["train"]["lr"], kd.settings["train"]["lr"]) == (0.05, 0.2)
    assert paper.settings["train"]["images"] == 5000
    assert paper.settings["precision"] == "32"
    assert "epochs" not in paper.settings["train"]
    with pytest.raises(KD3Error, match="unknown preset 'papr'"):
        planned(rows=[{"name": "a", "settings": {"preset": "papr"}}])


def test_a_budget_in_epochs_is_that_of_all_rows_unless_images_are_given():
    rows = [{"name": "paper", "settings": {"preset": "paper"}}, {"name": "KD", "settings": {"method": "kd"}}]
    found = build(StudyFile, {"title": "-", "epochs": 240, "rows": rows}, where="test")
    for cell in plan(found, GIVEN, ALL_POOLS).cells:
        assert cell.settings["train"]["epochs"] == 240
        assert build(DistillConfig, merge({"out": "-"}, cell.settings), where="test").train.images is None
    for cell in plan(found, {**GIVEN, "train": {"images": 5000, "evals": 3}}, ALL_POOLS).cells:
        train = build(DistillConfig, merge({"out": "-"}, cell.settings), where="test").train
        assert (train.images, train.epochs, train.evals) == (5000, None, 3)
    with pytest.raises(KD3Error, match="give the budget as images or as epochs, not both"):
        build(StudyFile, {"title": "-", "epochs": 240, "images": 100, "rows": rows}, where="test")
    own = [{"name": "a", "settings": {"train": {"epochs": 2}}}]
    with pytest.raises(KD3Error, match="has a budget of its own"):
        plan(build(StudyFile, {"title": "-", "epochs": 240, "rows": own}, where="test"), GIVEN, ALL_POOLS)


def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(KD3Error, match="did you mean 'table1'"):
        read_study("tabel1")
    with pytest.raises(KD3Error, match="does not exist"):
        read_study("mine.yaml")


def test_names_become_folders():
    assert slug("bound: KD on the original data") == "bound-kd-on-the-original-data"
    assert slug("../..") == "row"


def test_common_options_are_for_the_rows_of_their_method_and_a_row_has_only_its_own():
    rows = [{"name": "a", "settings": {"method": "kd"}}, {"name": "b", "settings": {"method": "kd3"}}]
    cells = {cell.row: cell for cell in planned(common={"kd3": {"balance": 0.5}}, rows=rows).cells}
    assert "kd3" not in cells["a"].settings
    assert cells["b"].settings["kd3"] == {"balance": 0.5}
    with pytest.raises(KD3Error, match="options of method 'simkd' have no effect with method 'kd'"):
        planned(rows=[{"name": "a", "settings": {"method": "kd", "simkd": {"alignment_weight": 1}}}])
