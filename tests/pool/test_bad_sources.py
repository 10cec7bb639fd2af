"""Arrays, tables, batches and lists that are damaged, hostile or something else: named, counted, never run."""

import csv
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool_pictures import encoded, folder_of, noise, some_files

import kd3
from kd3.errors import KD3Error
from kd3.pool.record import Unusable
from kd3.pool.sources import records


def only(path: Path) -> Unusable:
    (record,) = records([str(path)])
    assert isinstance(record.location, Unusable)
    assert record.key == path.name
    return record.location


def saved(path: Path, array: np.ndarray, **options: object) -> Path:
    np.save(path, array, **options)
    return path


WRONG_ARRAYS = {
    "floats": np.zeros((2, 8, 8, 3), np.float32),
    "labels": np.zeros(5, np.int64),
    "rows": np.zeros((5, 3072), np.uint8),
    "two channels": np.zeros((5, 2, 8, 8), np.uint8),
    "nothing": np.zeros((0, 8, 8, 3), np.uint8),
    "Fortran order": np.asfortranarray(np.zeros((5, 8, 8, 3), np.uint8)),
    "objects": np.array([{"a": 1}], dtype=object),
}


@pytest.mark.parametrize("kind", WRONG_ARRAYS)
def test_arrays_that_are_no_heap_of_images_are_refused_with_what_they_are(kind, tmp_path):
    said = only(saved(tmp_path / "a.npy", WRONG_ARRAYS[kind], allow_pickle=True))
    assert said.reason == "not an image"
    assert str(WRONG_ARRAYS[kind].shape)[:-1] in said.detail
    np.savez(tmp_path / "b.npz", x=WRONG_ARRAYS[kind])
    assert only(tmp_path / "b.npz").detail.startswith("x is an array")


def test_an_ingest_of_a_wrong_array_says_how_to_make_it_right_and_leaves_nothing(tmp_path):
    path = saved(tmp_path / "crawl.npy", WRONG_ARRAYS["floats"])
    with pytest.raises(KD3Error, match=r"crawl\.npy \(not an image: an array \(2, 8, 8, 3\) of <f4; kd3 reads uint8"):
        kd3.ingest(path, tmp_path / "pool", image_size=8)
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("header", [b"", b"\x93NUM", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x01\x00\x04\x00{'a'"])
def test_damaged_array_headers_are_told(header, tmp_path):
    (tmp_path / "a.npy").write_bytes(header)
    assert only(tmp_path / "a.npy").reason == "not an image"


def test_a_header_of_code_is_not_run(tmp_path):
    code = b"{'descr': __import__('os').system('touch %b'), 'fortran_order': False, 'shape': (1,)}"
    code %= os.fsencode(tmp_path / "ran")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(code).to_bytes(2, "little") + code)
    assert only(tmp_path / "a.npy").detail == "its header is damaged"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_of_a_cut_array_the_images_before_the_cut_are_used(save, tmp_path):
    images = np.stack([np.asarray(noise(seed, 16, 16)) for seed in range(40)])
    whole = saved(tmp_path / "whole.npy", images).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[: len(whole) // 2])
    *found, last = records([str(tmp_path / "cut.npy")])
    assert 15 < len(found) < 21
    assert last.location == Unusable("archive damaged", f"it ends after {len(found)} of 40 images")

    save(tmp_path / "whole.npz", images)
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\0" * (len(data) // 2 - len(data) // 3)
    (tmp_path / "broken.npz").write_bytes(data)
    # Stored arrays have no check of each image: what the zeros cover is another picture.
    found = list(records([str(tmp_path / "broken.npz")]))
    assert found[-1].location.reason == "archive damaged" if save is np.savez_compressed else len(found) >= 40


class Harmful:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_batch_with_code_is_refused_by_what_it_asks_for_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Harmful()}, protocol=2))
    said = only(tmp_path / "data_batch_1")
    assert said.reason == "not an image"
    assert "asks for posix.system" in said.detail
    assert not (tmp_path / "ran").exists()


WRONG_BATCHES = {
    "a list": [1, 2],
    "other names": {b"images": np.zeros((2, 3072), np.uint8)},
    "floats": {b"data": np.zeros((2, 3072), np.float32)},
    "no square": {b"data": np.zeros((2, 3000), np.uint8)},
}


@pytest.mark.parametrize("kind", WRONG_BATCHES)
def test_pickles_that_are_no_batch_say_what_they_are(kind, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(WRONG_BATCHES[kind], protocol=4))
    assert only(tmp_path / "a.pkl").reason == "not an image"


def test_a_cut_batch_is_told(tmp_path):
    whole = pickle.dumps({b"data": np.zeros((9, 3072), np.uint8)}, protocol=2)
    (tmp_path / "test_batch").write_bytes(whole[:-4000])
    assert "damaged pickle" in only(tmp_path / "test_batch").detail


def test_python_2_batches_are_read(tmp_path):
    # As the published CIFAR-10 files: protocol 2, str keys, numpy.core's names.
    data = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    content = pickle.dumps({b"data": data}, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "data_batch_3").write_bytes(content)
    assert len(list(records([str(tmp_path / "data_batch_3")]))) == 2


def test_files_that_are_only_named_like_a_batch_are_images(tmp_path):
    folder_of(tmp_path, {"train": encoded(noise(1)), "test.bin": encoded(noise(2))})
    assert len(kd3.ingest(tmp_path, tmp_path.parent / f"{tmp_path.name}-pool", image_size=16)) == 2


@pytest.mark.parametrize(("labels", "name"), [(1, "data_batch_1.bin"), (2, "train.bin")])
def test_plain_batches_are_read_by_range(labels, name, tmp_path):
    pictures = [np.asarray(noise(seed, 32, 32)) for seed in range(3)]
    (tmp_path / name).write_bytes(
        b"".join(bytes(labels) + picture.transpose(2, 0, 1).tobytes() for picture in pictures)
    )
    pool = kd3.ingest(tmp_path / name, tmp_path / "pool", image_size=32)
    np.testing.assert_array_equal(pool.read(np.arange(3)), np.stack([p.transpose(2, 0, 1) for p in pictures]))


def test_a_table_without_images_says_what_it_has(tmp_path):
    pq.write_table(pa.table({"url": ["a"], "width": [1]}), tmp_path / "a.parquet")
    assert "it has url, width" in only(tmp_path / "a.parquet").detail


def test_of_two_columns_without_a_usual_name_none_is_guessed(tmp_path):
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"]}), tmp_path / "a.parquet")
    assert "without a column of images" in only(tmp_path / "a.parquet").detail


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.npz"])
def test_tables_that_are_none_are_told(name, tmp_path):
    (tmp_path / name).write_bytes(b"junk" * 100)
    assert only(tmp_path / name).reason == "archive damaged"


def test_rows_that_were_not_downloaded_are_counted_with_their_reason(tmp_path):
    table = pa.table(
        {
            "jpg": [encoded(noise(1)), None, None],
            "key": ["0", "1", "2"],
            "status": ["success", "failed_to_download", "success"],
            "error_message": [None, "HTTP Error 404: Not Found", None],
        }
    )
    pq.write_table(table, tmp_path / "00000.parquet")
    kd3.ingest(tmp_path / "00000.parquet", tmp_path / "pool", image_size=16)
    with (tmp_path / "pool/rejected.csv").open(newline="") as handle:
        assert [(row["key"], row["reason"], row["detail"]) for row in csv.DictReader(handle)] == [
            ("1", "not downloaded", "HTTP Error 404: Not Found"),
            ("2", "empty", "the row holds no image"),
        ]


def test_structs_with_a_path_alone_are_read_beside_the_table_and_nowhere_else(tmp_path):
    folder_of(tmp_path / "data", some_files(1))
    folder_of(tmp_path, {"secret.png": encoded(noise(9))})
    paths = ["0/00000.png", "../secret.png", str(tmp_path / "secret.png")]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    pq.write_table(pa.table({"image": images}), tmp_path / "data" / "a.parquet")
    first, *others = records([str(tmp_path / "data" / "a.parquet")])
    assert first.location.read() == some_files(1)["0/00000.png"]
    assert [other.location.reason for other in others] == ["unreadable"] * 2


def test_lists_name_files_archives_and_what_is_missing(tmp_path):
    folder_of(tmp_path / "far", some_files(2))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("x.png", encoded(noise(7)))
    (tmp_path / "list.txt").write_text(f"# mine\n\nfar/0/00000.png\nb.zip\nabsent.png\n{tmp_path}/far/1/00001.png\n")
    found = {record.key: record.location for record in records([str(tmp_path / "list.txt")])}
    assert list(found)[:2] == [f"{tmp_path}/far/0/00000.png", f"{tmp_path}/b.zip/x.png"]
    assert found[f"{tmp_path}/absent.png"] == Unusable("unreadable", "no such file")
    assert len(found) == 4


def test_a_table_of_paths_without_a_usual_column_names_those_it_has(tmp_path):
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(KD3Error, match=r"list\.csv has the columns a, b; one must be called path, "):
        kd3.ingest(tmp_path / "list.csv", tmp_path / "pool", image_size=16)
    assert not (tmp_path / "pool").exists()


def test_a_list_that_is_no_text_is_told(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\0\1\2" * 100)
    with pytest.raises(KD3Error, match="is no text"):
        kd3.ingest(tmp_path / "list.txt", tmp_path / "pool", image_size=16)
    assert not (tmp_path / "pool").exists()
