"""Sources of labels: one test for each form in docs/labels.md."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool_containers import web_server

import kd3
from in_process import here
from kd3.runtime.errors import KD3Error
from kd3.sources.labels import labelled_files
from named_colours import colour, picture, pictures, teacher

NAMES = ["fig", "kiwi", "lime"]
KINDS = [2, 0, 1, 2, 1]  # a class for each of five pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return teacher(tmp_path_factory.mktemp("model"), [0, 1, 2], "[fig, kiwi, lime]")


def figures(model, data):
    done = here("evaluate", model, "--data", data, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["images"], found["top1"], found["split"]


def encoded(kind):
    buffer = io.BytesIO()
    picture(kind).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def table(labels):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": encoded(kind), "path": f"{n}.png"} for n, kind in enumerate(KINDS)]
    return pa.table({"image": pa.array(rows, kind), **labels})


@pytest.mark.parametrize(
    "labels",
    [
        {"label": KINDS},
        {"label": [NAMES[kind] for kind in KINDS]},
        {"coarse": [0] * 5, "fine_label": pa.array(KINDS, pa.uint8())},
        {"class": pa.array([NAMES[kind] for kind in KINDS]).dictionary_encode()},
    ],
    ids=["int", "text", "fine", "dictionary"],
)
def test_a_label_column(labels, model, tmp_path):
    pq.write_table(table(labels), tmp_path / "rows.parquet")
    assert figures(model, tmp_path / "rows.parquet") == (5, 100, "")


def test_a_class_label_is_matched_by_its_names(model, tmp_path):
    own = ["lime", "fig", "kiwi"]
    features = {"info": {"features": {"label": {"names": own, "_type": "ClassLabel"}}}}
    rows = table({"label": [own.index(NAMES[kind]) for kind in KINDS]})
    rows = rows.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(rows, tmp_path / "validation-00000-of-00001.parquet")
    assert figures(model, tmp_path) == (5, 100, "")


def test_rows_without_a_label_are_left_out_and_counted(model, tmp_path):
    pq.write_table(table({"label": [*KINDS[:3], None, -1]}), tmp_path / "rows.parquet")
    done = here("evaluate", model, "--data", tmp_path / "rows.parquet")
    assert "on 3 images" in done.stdout
    assert "left out: 2 without a label" in done.stdout


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_cls_and_json_of_a_webdataset(mode, model, tmp_path):
    files = {}
    for number, kind in enumerate(KINDS):
        files[f"{number:04d}.png"] = encoded(kind)
        if number % 2:
            files[f"{number:04d}.cls"] = f"{kind}\n".encode()
        else:
            files[f"{number:04d}.json"] = json.dumps({"url": "x", "label": kind}).encode()
    path = tar_of(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), files, mode)
    assert figures(model, path) == (5, 100, "")


def test_cls_in_a_zip_and_in_a_folder(model, tmp_path):
    folder = tmp_path / "loose"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number, kind in enumerate(KINDS):
            for name, data in ((f"{number}.png", encoded(kind)), (f"{number}.cls", NAMES[kind].encode())):
                archive.writestr(name, data)
                (folder / name).write_bytes(data)
    assert figures(model, tmp_path / "a.zip") == figures(model, folder) == (5, 100, "")


def test_of_several_splits_the_test_split_is_measured(model, tmp_path):
    for split, kinds in (("train", KINDS), ("val", KINDS[:4]), ("test", KINDS[:3])):
        files = {}
        for number, kind in enumerate(kinds):
            files |= {f"{number}.png": encoded(kind), f"{number}.cls": str(kind).encode()}
        tar_of(tmp_path / f"my-{split}-00.tar", files)
    assert figures(model, tmp_path) == (3, 100, "test")
    (tmp_path / "my-test-00.tar").unlink()
    assert figures(model, tmp_path) == (4, 100, "validation")


def flat(kinds, side):
    return np.stack([np.repeat(np.array(colour(kind), np.uint8), side * side) for kind in kinds])


@pytest.mark.parametrize(
    ("test", "train", "meta", "labels", "names"),
    [
        ("test_batch", "data_batch_1", "batches.meta", "labels", "label_names"),
        ("test", "train", "meta", "fine_labels", "fine_label_names"),
    ],
)
def test_the_test_batch_of_cifar_by_the_names_of_its_archive(test, train, meta, labels, names, tmp_path):
    own = ["lime", "fig", "kiwi"]
    for name, kinds in ((test, KINDS), (train, KINDS[:2])):
        batch = {b"data": flat(kinds, 32), labels.encode(): [own.index(NAMES[kind]) for kind in kinds]}
        batch |= {b"coarse_labels": [0] * len(kinds)}
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    (tmp_path / meta).write_bytes(pickle.dumps({names.encode(): [name.encode() for name in own]}))
    model = teacher(tmp_path / ".model", [0, 1, 2], "[fig, kiwi, lime]")
    assert figures(model, tmp_path) == (5, 100, "test")
    assert figures(model, tmp_path / train) == (2, 100, "")


def test_cifars_binary_batches_by_their_last_label(model, tmp_path):
    rows = np.concatenate([np.array([[9, kind] for kind in KINDS], np.uint8), flat(KINDS, 32)], axis=1)
    (tmp_path / "test.bin").write_bytes(rows.tobytes())
    (tmp_path / "fine_label_names.txt").write_text("fig\nkiwi\nlime\n")
    assert figures(model, tmp_path / "test.bin") == (5, 100, "")


@pytest.mark.parametrize(("test", "meta"), [("test_batch", "batches.meta"), ("test", "meta")])
@pytest.mark.parametrize("name", ["cifar-python.tar.gz", "cifar.tar", "cifar.zip"])
def test_the_test_batch_inside_cifars_archive(name, test, meta, model, tmp_path):
    labels, names = ("labels", "label_names") if test == "test_batch" else ("fine_labels", "fine_label_names")
    files = {
        f"c/{name}": pickle.dumps({b"data": flat(kinds, 32), labels.encode(): kinds})
        for name, kinds in ((test, KINDS), ("data_batch_1", KINDS[:1]), ("train", KINDS[:1]))
    }
    files[f"c/{meta}"] = pickle.dumps({names: NAMES})
    path = tmp_path / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in files.items():
                archive.writestr(member, data)
    else:
        tar_of(path, files, "w:gz" if path.suffix == ".gz" else "w")
    assert figures(model, path) == (5, 100, "")


def test_a_damaged_test_batch_inside_an_archive_is_reported(model, tmp_path):
    done = here("evaluate", model, "--data", tar_of(tmp_path / "c.tar", {"c/test": b"\x80\2.", "c/meta": b""}))
    assert (done.returncode, "holds c/test, which cannot be read" in done.stderr) == (2, True)


def test_tiny_imagenets_validation_images_by_their_annotations(model, tmp_path):
    (tmp_path / "val" / "images").mkdir(parents=True)
    lines = []
    for number, kind in enumerate(KINDS):
        picture(kind).save(tmp_path / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{NAMES[kind]}\t0\t0\t9\t9\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    assert figures(model, tmp_path / "val") == (5, 100, "")


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("between", ["-", "."])
def test_mnists_idx_with_the_labels_beside_it(ending, between, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    greys = np.array([30, 120, 220], np.uint8)
    images = np.stack([np.full((28, 28), greys[kind]) for kind in KINDS])
    write = (
        (lambda path, data: path.write_bytes(gzip.compress(data)))
        if ending
        else (lambda path, data: path.write_bytes(data))
    )
    write(data / f"t10k-images{between}idx3-ubyte{ending}", idx(images))
    write(data / f"t10k-labels{between}idx1-ubyte{ending}", idx(np.array(KINDS, np.uint8)))
    write(data / f"train-images{between}idx3-ubyte{ending}", idx(images[:1]))
    found = labelled_files(str(data))
    assert ([label.number for label in found.labels], found.split) == (KINDS, "test")
    pool = kd3.ingest(data, tmp_path / "pool", image_size=28, workers=0)
    assert sorted(int(image.mean()) for image in pool.read(np.arange(len(pool)))) == [
        30,
        120,
        220,
    ]


def test_an_idx_file_cut_short_or_of_other_numbers_is_no_source_of_labels(model, tmp_path):
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(struct.pack(">HBBI", 0, 13, 1, 4))
    done = here("evaluate", model, "--data", path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def arrays(kinds):
    return np.stack([np.asarray(picture(kind)) for kind in kinds]), np.array(kinds)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("of_images", "of_labels", "split"),
    [
        (("x_train", "x_test"), ("y_train", "y_test"), "test"),
        (("train_images", "val_images"), ("train_labels", "val_labels"), "validation"),
        (("trainX", "testX"), ("trainY", "testY"), "test"),
    ],
)
def test_arrays_of_labels_in_a_npz_by_the_names_of_those_of_images(save, of_images, of_labels, split, model, tmp_path):
    first, last = arrays([0, 0, 0]), arrays(KINDS)
    contents = {of_images[0]: first[0], of_labels[0]: np.array([2, 1, 2]), of_images[1]: last[0]}  # wrong in training
    save(tmp_path / "data.npz", **contents, **{of_labels[1]: last[1].reshape(-1, 1)})
    assert figures(model, tmp_path / "data.npz") == (5, 100.0, split)


@pytest.mark.parametrize("labels", [np.array(KINDS, np.uint8), np.array([NAMES[kind] for kind in KINDS])])
def test_one_array_of_labels_beside_one_of_images(labels, model, tmp_path):
    np.savez(tmp_path / "a.npz", arrays(KINDS)[0], labels)
    assert figures(model, tmp_path / "a.npz")[:2] == (5, 100.0)


@pytest.mark.parametrize(
    "others",
    [
        {"one": np.zeros(5, np.int64), "two": np.zeros(5, np.int64)},  # which of them?
        {"labels": np.zeros(4, np.int64)},  # of others
        {"labels": np.zeros((5, 2), np.int64)},  # several an image
        {"labels": np.zeros(5)},  # no classes
    ],
)
def test_arrays_that_may_be_anything_are_no_labels(others, tmp_path):
    np.savez(tmp_path / "a.npz", images=arrays(KINDS)[0], **others)
    with pytest.raises(KD3Error, match="nor labels"):
        labelled_files(str(tmp_path / "a.npz"))


def test_images_of_a_npz_without_a_class_are_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", images=arrays(KINDS)[0], labels=np.array([2, -1, 1, 2, -1]))
    found = labelled_files(str(tmp_path / "a.npz"))
    assert ([label.number for label in found.labels], found.left_out) == ([2, 1, 2], Counter({"without a label": 2}))


def test_cls_in_a_zip_of_a_web_server(model, tmp_path):
    with zipfile.ZipFile(tmp_path / "web.zip", "w") as archive:
        for number, kind in enumerate(KINDS):
            archive.writestr(f"{number}.png", encoded(kind))
            archive.writestr(f"{number}.cls", str(kind))
    with web_server(tmp_path) as server:
        found = labelled_files(f"{server.url}/web.zip")
    assert [label.number for label in found.labels] == KINDS


@pytest.mark.parametrize("inside", [False, True])
def test_a_csv_of_file_and_label(inside, model, tmp_path):
    (tmp_path / "data").mkdir()
    for number, kind in enumerate(KINDS):
        picture(kind).save(tmp_path / "data" / f"{number}.png")
    folder = "" if inside else "data/"
    rows = "".join(f"{folder}{number}.png,{NAMES[kind]}\n" for number, kind in enumerate(KINDS))
    path = tmp_path / "data" / "labels.csv" if inside else tmp_path / "labels.csv"
    path.write_text("file_name,label\n" + rows)
    assert figures(model, tmp_path / "data" if inside else path) == (5, 100, "")


def test_a_name_that_two_files_share_takes_no_label_by_the_name_only(model, tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        for number, kind in enumerate(KINDS):
            picture(kind).save(tmp_path / folder / f"{folder[0] if number else ''}{number}.png")
    rows = [
        f"{n}.png,{NAMES[kind]}" for n, kind in [(0, 0), *((f"{f}{n}", KINDS[n]) for f in "fs" for n in range(1, 5))]
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    found = labelled_files(str(tmp_path))
    assert [record.key for record in found.records] == [
        f"{f}/{f[0]}{n}.png" for f in ("first", "second") for n in range(1, 5)
    ]
    assert found.left_out == Counter({"without a label": 2})
    assert figures(model, tmp_path) == (8, 100, "")


def numbered(folder):
    """Save one picture of each kind, `0.png` and so on; return the rows of their table."""
    for number, kind in enumerate(KINDS):
        picture(kind).save(folder / f"{number}.png")
    return [f"{n}.png,{NAMES[kind]}" for n, kind in enumerate(KINDS)]


def test_a_file_with_two_labels_has_none(model, tmp_path):
    rows = numbered(tmp_path)
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows, rows[0], "1.png,lime", rows[1]]))
    found = labelled_files(str(tmp_path))
    assert [record.key for record in found.records] == ["0.png", "2.png", "3.png", "4.png"]
    assert found.left_out == Counter({"without a label": 1})
    assert figures(model, tmp_path) == (4, 100, "")


def test_a_file_with_two_labels_in_a_list_has_none(model, tmp_path):
    rows = numbered(tmp_path)
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, "3.png,kiwi", rows[2]]))
    found = labelled_files(str(tmp_path / "list.csv"))
    assert [record.key for record in found.records] == ["0.png", "1.png", "2.png", "4.png", "2.png"]
    assert found.left_out == Counter({"without a label": 2})
    assert figures(model, tmp_path / "list.csv") == (5, 100, "")


def test_class_folders_in_several_archives_are_one(model, tmp_path):
    for number in range(2):
        tar_of(tmp_path / f"{number}.tar", {f"{name}/{number}.png": encoded(k) for k, name in enumerate(NAMES)})
    assert figures(model, tmp_path) == (6, 100, "")


def test_files_beside_the_class_folders_are_left_out_and_counted(model, tmp_path):
    data = pictures(tmp_path / "data", dict(zip(NAMES, range(3), strict=True)))
    for name in ("Thumbs.db", "LICENSE", ".DS_Store", "desktop.ini", "README.md"):
        (data / name).write_bytes(b"\0\1")
    (data / "fig" / "Thumbs.db").write_bytes(b"\0\1")
    done = here("evaluate", model, "--data", data)
    assert "on 12 images" in done.stdout
    assert "left out: 3 beside the class folders, 1 not an image" in done.stdout
    assert labelled_files(str(data)).left_out == Counter({"beside the class folders": 3})


def test_a_damaged_batch_is_left_out_by_its_reason(model, tmp_path):
    batch = pickle.dumps({b"data": flat(KINDS, 32), b"labels": KINDS})
    (tmp_path / "data_batch_1").write_bytes(batch)
    (tmp_path / "data_batch_2").write_bytes(batch[:-900])
    assert labelled_files(str(tmp_path)).left_out == Counter({"archive damaged": 1})


def test_linked_class_folders_are_entered(model, tmp_path):
    stored = pictures(tmp_path / "stored", dict(zip(NAMES, range(3), strict=True)))
    (tmp_path / "test").mkdir()
    for name in NAMES:
        (tmp_path / "test" / name).symlink_to(stored / name)
    (tmp_path / "test" / "fig" / "again").symlink_to(tmp_path / "test")
    done = here("evaluate", model, "--data", tmp_path / "test", "--json")
    assert json.loads(done.stdout)["top1"] == 100


def test_a_pool_of_rows_takes_its_labels_from_its_source(tmp_path):
    rows = {f"{number}.png": kind for number, kind in enumerate([0, 1, 2])}
    tar_of(
        tmp_path / "train.tar",
        {name: encoded(kind) for name, kind in rows.items()}
        | {name.replace("png", "cls"): NAMES[kind].encode() for name, kind in rows.items()},
    )
    pool = kd3.ingest(tmp_path / "train.tar", tmp_path / "pool", image_size=16, workers=0)
    assert pool.labels(["lime", "fig", "kiwi"]).tolist() == [1, 2, 0]
    (tmp_path / "train.tar").unlink()
    with pytest.raises(KD3Error, match=r"lies in no folder of a class, and its source says no label: .*does not exist"):
        pool.labels(NAMES)


def test_pictures_without_any_label_are_refused_with_what_is_read(model, crawl):
    done = here("evaluate", model, "--data", crawl)
    assert done.returncode == 2
    assert "has no class folders" in done.stderr
    assert "docs/labels.md" in done.stderr
