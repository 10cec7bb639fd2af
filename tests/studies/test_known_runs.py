"""Figures that a study takes from files: of the very tests asked about, and checked before they are used."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from kd3.runtime.errors import KD3Error
from kd3.studies import pools
from kd3.studies.known_runs import KnownRuns
from kd3.studies.pools import ChangedTests
from kd3.studies.runs import StudyFolder
from kd3.studies.table import RunResult

RESULT = RunResult(
    row="KD3", method="kd3", series="KD3", x=None, pool="crawl", seed=0, agreement=71.5, accuracy=64.0,
    accuracy_at_end=63.0, kept_last=40.0, images=1000, seconds=9.5, history=((4.0, 50.0), (9.5, 63.0)),
    changed={"dim": 41.0, "grey": 52.0}, run={"teacher": "t", "pool": "p", "train": {"images": 1000}}, machine="EPYC",
)  # fmt: skip


def known(folder, tests=None, **values):
    path = folder / "results.json"
    path.write_text(json.dumps({"runs": [asdict(RESULT)], **values}))
    return KnownRuns([str(path)], tests).all()


def test_what_is_written_is_read(tmp_path):
    assert known(tmp_path) == [RESULT]


def test_an_accuracy_on_other_changed_images_of_the_same_name_is_left_out(tmp_path):
    stored = {"changed_tests": {"dim": ["darken", 0.3], "grey": ["greyscale", 1.0]}}
    wanted = {"dim": ("darken", 0.6), "grey": ("greyscale", 1.0)}
    (found,) = known(tmp_path, wanted, **stored)
    assert found.changed == {"grey": 52.0}
    (found,) = known(tmp_path, {**wanted, "dim": ("darken", 0.3)}, **stored)
    assert found.changed == RESULT.changed
    (found,) = known(tmp_path, wanted)  # of an earlier version, which did not write what they were
    assert found.changed == RESULT.changed


ODD = {
    "a word for a figure": {"accuracy": "good"},
    "more than all": {"agreement": 171.5},
    "no number": {"accuracy_at_end": float("nan")},
    "without an end": {"seconds": float("inf")},
    "a list of names": {"changed": ["dim"]},
    "a history of one column": {"history": [[1.0]]},
    "settings that are none": {"run": 7},
    "training settings that are none": {"run": {"train": [1]}},
}


@pytest.mark.parametrize("what", ODD)
def test_results_that_cannot_be_are_refused(what, tmp_path):
    with pytest.raises(KD3Error, match="does not hold what a study writes"):
        known(tmp_path, runs=[{**asdict(RESULT), **ODD[what]}])


@pytest.mark.parametrize("text", ["[" * 50_000, "{", "7", '{"runs": 7}', '{"runs": [7]}'])
def test_files_that_are_no_results_are_refused(text, tmp_path):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(KD3Error, match=r"odd\.json"):
        KnownRuns([str(tmp_path / "odd.json")])


def test_stored_accuracies_are_those_of_the_change_the_images_and_the_weights(tmp_path, monkeypatch):
    cell = SimpleNamespace(name="kd3-seed0")
    student = tmp_path / "runs" / cell.name / "student"
    student.mkdir(parents=True)
    weights = student / "model.safetensors"
    weights.write_bytes(b"first")
    asked = []

    def labelled(source, *, change, **_):
        asked.append((source, *change))
        return SimpleNamespace(accuracy=lambda *_: float(len(asked)))

    monkeypatch.setattr(pools, "LabelledImages", labelled)
    monkeypatch.setattr(pools, "load_student", lambda *_, **__: SimpleNamespace(preparation=None, classes=[]))
    compute = SimpleNamespace(place=lambda network: network)

    def measured(strength, source="test"):
        return ChangedTests({"dim": ("darken", strength)}, source, StudyFolder(tmp_path), compute).accuracy(cell)

    assert [measured(0.3), measured(0.3), measured(0.6), measured(0.3)] == [{"dim": n} for n in (1, 1, 2, 1)]
    assert measured(0.3, "other") == {"dim": 3}
    weights.write_bytes(b"adapted since")
    assert measured(0.3, "other") == {"dim": 4}
    assert asked == [
        ("test", "darken", 0.3),
        ("test", "darken", 0.6),
        ("other", "darken", 0.3),
        ("other", "darken", 0.3),
    ]
    (student.parent / "changed_tests.json").write_text('{"dim": 99.0}')  # as earlier versions wrote them
    assert measured(0.3, "other") == {"dim": 5}
