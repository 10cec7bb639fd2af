"""`kd3.select`: it keeps the selection's images, and all its files agree."""

import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from coloured_pools import CLASSES, colour_student, colour_teacher, colours, logits, pool_of

import kd3
from kd3.selection import blend_logits, predict, select_confident

CPU = {"device": "cpu", "precision": "32"}


def rows(folder):
    return parquet.read_table(folder / "selection.parquet").to_pylist()


@pytest.mark.parametrize(("weight", "alpha"), [(None, 0.5), (0.3, 0.3), (0.0, 0.0), (1.0, 1.0)])
def test_keeps_what_the_blend_of_both_networks_is_sure_of(tmp_path, weight, alpha):
    images, teacher, student = colours(300), colour_teacher(), colour_student()
    teachers = logits(teacher, images)
    expected = predict(blend_logits(teachers, logits(student, images), alpha))
    chosen = select_confident(expected, threshold=0.9, teacher_logits=lambda: [teachers])
    settings = {} if weight is None else {"teacher_weight": weight}
    found = kd3.select(
        teacher, pool_of(images), tmp_path / "out", student=student, threshold=0.9, images_per_grid=0, **settings, **CPU
    )
    assert found.positions.tolist() == chosen.index.tolist()
    assert 0 < len(chosen.index) < 300
    np.testing.assert_allclose([row["confidence"] for row in rows(found.folder)], expected.confidence, rtol=1e-5)
    assert found.report["settings"]["teacher_weight"] == alpha


def test_without_a_student_the_teacher_alone_is_asked(tmp_path):
    images, teacher = colours(200), colour_teacher()
    teachers = logits(teacher, images)
    chosen = select_confident(predict(teachers), teacher_logits=lambda: [teachers])
    found = kd3.select(teacher, pool_of(images), tmp_path / "out", images_per_grid=0, **CPU)
    assert found.positions.tolist() == chosen.index.tolist()
    assert found.report["student"] is None


def test_table_list_and_report_say_the_same(teacher_file, pool_folder, tmp_path):
    found = kd3.select(teacher_file, pool_folder, tmp_path / "out", threshold=0.6, images_per_grid=4, **CPU)
    pool, report = kd3.ImagePool.open(pool_folder), json.loads((found.folder / "selection.json").read_text())
    assert report == found.report
    table = rows(found.folder)
    assert [row["position"] for row in table] == list(range(len(pool)))
    index = pool.index().to_pylist()
    assert [(row["source"], row["key"]) for row in table] == [(row["source"], row["key"]) for row in index]
    for row in table:
        entry = report["classes"][row["label"]]
        assert (row["class"], row["threshold"]) == (entry["name"], entry["threshold"])
        assert row["kept"] == (row["reason"] != "below threshold")
        assert (row["confidence"] > row["threshold"]) == (row["reason"] == "confident")
    kept = [row for row in table if row["kept"]]
    listed = (found.folder / "kept.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in listed] == [[row["source"], row["key"]] for row in kept]
    assert report["totals"]["kept"] == len(kept) == len(found.positions)
    for entry in report["classes"]:
        own = [row for row in table if row["label"] == entry["label"]]
        assert entry["predicted"] == len(own)
        assert entry["kept"] == sum(row["kept"] for row in own)
        assert entry["mean_confidence"] == (pytest.approx(np.mean([row["confidence"] for row in own])) if own else None)
    about = json.loads(parquet.read_schema(found.folder / "selection.parquet").metadata[b"kd3"])
    assert about["pool"]["content_hash"] == pool.content_hash
    assert about["teacher"]["fingerprint"] == kd3.load_teacher(teacher_file).fingerprint()
    assert about["settings"]["threshold"] == 0.6
    assert about["kd3"] == kd3.__version__


def test_a_class_that_keeps_nothing_is_rescued_and_marked(tmp_path):
    images, teacher = colours(600), colour_teacher(shift=(0.0, 0.0, -50.0))  # nothing is ever blue
    found = kd3.select(teacher, pool_of(images), tmp_path / "out", images_per_grid=4, **CPU)
    blue = found.report["classes"][2]
    assert (blue["predicted"], blue["kept"], blue["mean_confidence"]) == (0, 0, None)
    bluest = torch.softmax(logits(teacher, images), dim=1)[:, 2].topk(2).indices.tolist()
    assert blue["rescued"] == bluest
    table = rows(found.folder)
    rescued = [row["position"] for row in table if row["reason"] == "rescued"]
    assert rescued
    assert set(rescued) <= set(bluest)
    assert all(table[position]["kept"] for position in bluest)
    assert found.report["totals"]["rescued"] == len(rescued)
    assert "1 of 3 classes would keep no image (blue)" in str(found)


def test_images_that_fill_the_gap_are_marked(tmp_path):
    images, teacher = colours(100), colour_teacher(scale=0.1)  # never sure
    found = kd3.select(teacher, pool_of(images), tmp_path / "out", threshold=1.0, at_least=90, **CPU)
    table = rows(found.folder)
    filled = [row for row in table if row["reason"] == "filled"]
    assert len(found.positions) == 90
    assert filled
    assert min(row["confidence"] for row in filled) >= max(
        row["confidence"] for row in table if row["reason"] == "below threshold"
    )
    assert "were added" in str(found)


def test_names_with_tabs_and_line_breaks_stay_on_one_line(tmp_path):
    from PIL import Image

    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for number, image in enumerate(colours(6)):
        Image.fromarray(image.transpose(1, 2, 0)).save(crawl / f"a\tb\n{number}.png")
    kd3.ingest(crawl, tmp_path / "pool", image_size=16, workers=0)
    found = kd3.select(colour_teacher(), tmp_path / "pool", tmp_path / "out", threshold=0.0, **CPU)
    lines = (found.folder / "kept.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [[str(crawl), f"a\tb\n{number}.png"] for number in range(6)]
    assert rows(found.folder)[0]["key"] == "a\tb\n0.png"


def test_the_same_again_has_nothing_to_do_and_other_settings_are_refused(tmp_path, capsys):
    images, out = colours(40), tmp_path / "out"
    first = kd3.select(colour_teacher(), pool_of(images), out, **CPU)
    before = (out / "selection.parquet").stat().st_mtime_ns
    again = kd3.select(colour_teacher(), pool_of(images), out, **CPU)
    assert "there is nothing to do" in capsys.readouterr().err
    assert again.report == first.report
    others = [
        (colour_teacher(), images, {"threshold": 0.5}, "another threshold"),
        (colour_teacher(scale=5.0), images, {}, "another teacher's fingerprint"),
        (colour_teacher(), colours(40, seed=1), {}, "another pool's content_hash"),
        (colour_teacher(), images, {"student": colour_student(), "teacher_weight": 1.0}, "another student's weights"),
    ]
    for teacher, other, settings, words in others:
        with pytest.raises(kd3.KD3Error, match=words):
            kd3.select(teacher, pool_of(other), out, **settings, **CPU)
    assert (out / "selection.parquet").stat().st_mtime_ns == before


def test_the_printed_table_has_a_line_for_each_class(tmp_path):
    found = kd3.select(colour_teacher(), pool_of(colours(50)), tmp_path / "out", **CPU)
    lines = str(found).splitlines()
    for name, entry in zip(CLASSES, found.report["classes"], strict=True):
        line = next(line for line in lines if line.strip().startswith(name))
        assert line.split()[1:4] == [str(entry["predicted"]), str(entry["kept"]), f"{entry['threshold']:.3f}"]
    assert str(found.folder / "kept.jsonl") in str(found)
    assert found.to_dict()["totals"]["images"] == 50
