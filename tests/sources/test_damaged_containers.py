"""Unusable parts of tables, arrays and batches are counted with a reason and end no ingest."""

import csv
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool_containers import (
    arrow_of,
    batch_of,
    bytes_of,
    cifar_binary,
    cifar_of,
    files_of,
    flat,
    list_of,
    npy_of,
    npz_of,
    parquet_of,
    pictures,
    python2_pickle,
    structs_of,
)
from pool_pictures import encoded, folder_of, noise, some_files

import kd3
from kd3.sources.finding import records
from kd3.sources.record import Record, Unreadable, Unusable

IMAGES = pictures(20)


def refusal(record: Record) -> str | None:
    return record.location.reason if isinstance(record.location, Unusable) else None


def detail(record: Record) -> str:
    assert isinstance(record.location, Unusable)
    return record.location.detail


def listed(path: Path) -> list[tuple[str, str | None]]:
    return [(record.key, refusal(record)) for record in records([str(path)])]


def rejected(pool: Path) -> dict[str, tuple[str, str]]:
    with (pool / "rejected.csv").open(newline="", encoding="utf-8") as handle:
        return {row["key"]: (row["reason"], row["detail"]) for row in csv.DictReader(handle)}


def cut(path: Path, share: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


class Code:
    """A pickle of this runs a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, ("touch ran",)


BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a.parquet": (lambda path: path.write_bytes(b"junk" * 100), "archive damaged", "magic bytes"),
    "b.parquet": (lambda path: cut(parquet_of(path, structs_of(files_of(IMAGES)))), "archive damaged", "magic bytes"),
    "c.arrow": (lambda path: path.write_bytes(b"junk" * 100), "archive damaged", ""),
    "d.npy": (lambda path: npy_of(path, IMAGES / np.float32(255)), "no images", "(array * 255).round()"),
    "e.npy": (lambda path: npy_of(path, np.arange(6, dtype=np.uint8).reshape(2, 3)), "no images", "not (N, H, W, 3)"),
    "f.npy": (lambda path: npy_of(path, np.full((2, 20, 20), None)), "no images", "never loaded"),
    "g.npy": (lambda path: npy_of(path, np.asfortranarray(IMAGES)), "no images", "numpy.ascontiguousarray"),
    "h.npy": (lambda path: path.write_bytes(b"junk" * 100), "archive damaged", "magic string"),
    "i.npy": (lambda path: npy_of(path, IMAGES.astype(np.uint16)), "no images", "uint16, not uint8"),
    "j.npz": (lambda path: npz_of(path, y=np.zeros(3), z=np.zeros((3, 4))), "no images", "y: its shape is (3,)"),
    "k.npz": (lambda path: cut(npz_of(path, x=IMAGES)), "archive damaged", "not a zip file"),
    "l": (lambda path: path.write_bytes(pickle.dumps(Code())), "unsafe pickle", "posix.system"),
    "m.pkl": (lambda path: cut(batch_of(path, IMAGES)), "archive damaged", "bytes are announced"),
    "n.pkl": (lambda path: path.write_bytes(pickle.dumps({"data": [np.float64(1)]})), "sidecar", ""),
    "o.pkl": (lambda path: path.write_bytes(pickle.dumps({"data": IMAGES / 2})), "no images", "float64, not uint8"),
    "p.pkl": (lambda path: path.write_bytes(pickle.dumps(Path("x"))), "unsafe pickle", "pathlib"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_container_in_a_crawl_is_one_row_with_its_cause(name: str, tmp_path: Path) -> None:
    make, reason, cause = BAD[name]
    make(tmp_path / name)
    ((key, why),) = listed(tmp_path)
    assert (key, why) == (name, reason)
    if reason != "sidecar":
        (record,) = records([str(tmp_path)])
        assert cause in detail(record)


def test_crawl_of_nothing_but_trouble_and_three_images_gives_the_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    crawl = folder_of(tmp_path / "crawl", some_files(3))
    for name, (make, _, _) in BAD.items():
        make(crawl / name)
    pool = kd3.ingest(crawl, tmp_path / "pool", image_size=16, workers=0)
    assert len(pool) == 3
    found = {key: reason for key, (reason, _) in rejected(tmp_path / "pool").items()}
    assert found == {name: reason for name, (_, reason, _) in BAD.items() if reason != "sidecar"}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [name for name in BAD if name != "n.pkl"])
def test_bad_container_alone_is_a_sentence_with_file_and_cause(name: str, tmp_path: Path) -> None:
    make, _, cause = BAD[name]
    make(tmp_path / name)
    with pytest.raises(kd3.KD3Error) as problem:
        kd3.ingest(tmp_path / name, tmp_path / "pool", image_size=16, workers=0)
    assert name in str(problem.value)
    assert cause in str(problem.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["d.npy", "l"])
def test_source_that_holds_no_images_is_told_before_the_others_are_read(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "crawl", some_files(3))
    BAD[name][0](tmp_path / name)
    with pytest.raises(kd3.KD3Error, match=f"{name} holds no images that kd3 can read"):
        kd3.ingest([tmp_path / "crawl", tmp_path / name], tmp_path / "pool", image_size=16)
    assert not (tmp_path / "pool").exists()


# Parquet and Arrow.


def test_damaged_row_group_costs_its_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = bytes_of(files_of(IMAGES))
    options = {"use_dictionary": False, "write_statistics": False}  # which would hold images, too
    pq.write_table(table, path, row_group_size=5, write_page_checksum=True, **options)
    data = bytearray(path.read_bytes())
    data[data.index(files_of(IMAGES)["00012.png"][:99]) + 50] ^= 1  # an image of the third group
    path.write_bytes(data)
    pool = kd3.ingest(path, tmp_path / "pool", image_size=32, workers=0)
    ((key, (reason, cause)),) = rejected(tmp_path / "pool").items()
    assert (key, reason) == ("10-14", "archive damaged")
    assert "checksum" in cause
    assert pool.index().column("key").to_pylist() == [str(n) for n in range(20) if not 10 <= n < 15]


def test_parquet_without_images_is_a_sidecar_in_a_folder_and_refused_as_a_source(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", bytes_of(files_of(IMAGES)).drop_columns(["jpg"]))
    assert listed(tmp_path) == [("a.parquet", "sidecar")]
    with pytest.raises(
        kd3.KD3Error, match=r"a\.parquet holds no images .* columns are url, key, status, error_message"
    ):
        kd3.ingest(path, tmp_path / "pool", image_size=16)


def test_failed_downloads_are_told_with_their_status(tmp_path: Path) -> None:
    table = bytes_of(files_of(IMAGES[:4]))
    status = ["success", "failed_to_download", "success", "failed_to_resize"]
    problem = [None, "HTTP Error 404: Not Found", None, "image decoding error"]
    images = [data if word == "success" else None for data, word in zip(table["jpg"].to_pylist(), status, strict=True)]
    table = pa.table({"status": status, "error_message": problem, "jpg": pa.array(images, pa.binary())})
    kd3.ingest(parquet_of(tmp_path / "a.parquet", table), tmp_path / "pool", image_size=32, workers=0)
    assert rejected(tmp_path / "pool") == {
        "1": ("not downloaded", "failed_to_download: HTTP Error 404: Not Found"),
        "3": ("not downloaded", "failed_to_resize: image decoding error"),
    }


def test_struct_without_bytes_names_a_file_beside_the_table(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", {"1.png": encoded(noise(1))})
    image = [{"bytes": encoded(noise(0)), "path": "0.png"}, {"bytes": None, "path": "images/1.png"}, None]
    table = pa.table({"image": pa.array(image, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    for path in (parquet_of(tmp_path / "a.parquet", table), arrow_of(tmp_path / "b.arrow", table)):
        found = list(records([str(path)]))
        assert [record.location.read() for record in found[:2]] == [encoded(noise(0)), encoded(noise(1))]
        assert refusal(found[2]) == "empty"


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["thumbnail", "image"], "image"),
        (["mask", "PNG"], "PNG"),
        (["content", "jpg"], "jpg"),
        (["pixels"], "pixels"),
    ],
)
def test_column_of_the_images_is_found_by_name_else_by_type(columns: list[str], chosen: str, tmp_path: Path) -> None:
    values = {name: [b"right" if name == chosen else b"wrong"] for name in columns}
    path = parquet_of(tmp_path / "a.parquet", pa.table({"words": ["x"], **values}))
    assert [record.location.read() for record in records([str(path)])] == [b"right"]


def test_several_columns_of_bytes_are_not_guessed_at(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", pa.table({"left": [b"x"], "right": [b"y"]}))
    with pytest.raises(kd3.KD3Error, match=r"several columns hold bytes \(left, right\)"):
        kd3.ingest(path, tmp_path / "pool", image_size=16)


def test_truncated_arrow_stream_gives_what_it_has_and_one_row_of_damage(tmp_path: Path) -> None:
    path = cut(arrow_of(tmp_path / "a.arrow", structs_of(files_of(pictures(200)))), 0.6)
    found = listed(path)
    assert [refused for _, refused in found] == [None] * 100 + ["archive damaged"]


def test_arrow_offsets_that_point_elsewhere_are_damage(tmp_path: Path) -> None:
    path = arrow_of(tmp_path / "a.arrow", pa.table({"image": [b"x" * 999, b"y" * 999]}))
    data = path.read_bytes()
    offsets = np.array([0, 999, 1998], dtype="<i4").tobytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, np.array([0, 2**30, 2**30 + 9], dtype="<i4").tobytes()))
    assert listed(path) == [("a.arrow", "archive damaged")]


# Arrays.


def test_truncated_array_gives_what_it_has_and_one_row_of_damage(tmp_path: Path) -> None:
    path = cut(npy_of(tmp_path / "a.npy", IMAGES))
    assert listed(path) == [(str(n), None) for n in range(9)] + [("a.npy", "truncated")]


def test_damaged_compressed_array_gives_what_comes_before(tmp_path: Path) -> None:
    path = npz_of(tmp_path / "a.npz", compressed=True, x=pictures(200))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    found = listed(path)
    assert 50 < len(found) <= 201
    assert found[-1] == ("a.npz", "archive damaged")


def test_arrays_of_a_file_are_told_apart_by_name_and_the_rest_are_sidecars_or_refused(tmp_path: Path) -> None:
    npz_of(tmp_path / "a.npz", x=IMAGES[:2], y=np.zeros(2), z=IMAGES[:1], features=np.zeros((2, 7, 7, 512)))
    assert listed(tmp_path / "a.npz") == [
        ("x/0", None),
        ("x/1", None),
        ("y", "sidecar"),
        ("z/0", None),
        ("features", "no images"),
    ]


# Batches.


def test_class_names_beside_batches_are_a_sidecar(tmp_path: Path) -> None:
    cifar_of(tmp_path / "cifar", IMAGES)
    found = listed(tmp_path / "cifar")
    assert found[0] == ("batches.meta", "sidecar")
    assert [refused for _, refused in found[1:]] == [None] * 20


def test_array_of_another_size_than_its_shape_is_damage(tmp_path: Path) -> None:
    data = python2_pickle({b"data": flat(IMAGES)})
    (tmp_path / "data_batch_1").write_bytes(data.replace((20).to_bytes(4, "little") + b"J", b"\x15\0\0\0J"))
    assert listed(tmp_path / "data_batch_1") == [("data_batch_1", "archive damaged")]


def test_binary_file_that_is_no_batch_is_tried_as_an_image(tmp_path: Path) -> None:
    path = cifar_binary(tmp_path / "a.bin", IMAGES)
    assert len(listed(path)) == 20
    path.write_bytes(b"\xff" + path.read_bytes()[1:])  # there is no class 255
    assert listed(path) == [("a.bin", None)]


def test_image_without_an_extension_stays_an_image(tmp_path: Path) -> None:
    folder_of(tmp_path, {"abcdef": encoded(noise(0)), "empty": b""})
    assert listed(tmp_path) == [("abcdef", None), ("empty", None)]


# Lists.


def test_entries_of_a_list_that_are_not_there_cost_a_row_each(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a b.png": encoded(noise(0)), "ü.png": encoded(noise(1)), "x.txt": b"caption"})
    path = list_of(tmp_path / "l.txt", ["a b.png", "# a comment", "", "gone.png", "gone.tar", str(tmp_path), "ü.png"])
    pool = kd3.ingest(path, tmp_path / "pool", image_size=16, workers=0)
    assert pool.index().column("key").to_pylist() == ["a b.png", "ü.png"]
    assert set(pool.index().column("source").to_pylist()) == {str(path)}
    reasons = {key: reason for key, (reason, _) in rejected(tmp_path / "pool").items()}
    assert reasons == dict.fromkeys(["gone.png", "gone.tar", str(tmp_path)], "unreadable")


def test_archives_of_a_list_are_opened(tmp_path: Path) -> None:
    npy_of(tmp_path / "x.npy", IMAGES[:2])
    folder_of(tmp_path, {"a.png": encoded(noise(0))})
    path = list_of(tmp_path / "l.txt", ["x.npy", "a.png"])
    assert listed(path) == [("x.npy/0", None), ("x.npy/1", None), ("a.png", None)]


@pytest.mark.parametrize("text", ["", "\n\n# nothing\n"])
def test_list_without_a_path_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(kd3.KD3Error, match=r"l\.txt is a list without a path"):
        kd3.ingest(tmp_path / "l.txt", tmp_path / "pool", image_size=16)


def test_list_in_a_folder_is_a_sidecar_and_an_image_called_txt_is_no_list(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.txt": encoded(noise(0))})
    assert listed(tmp_path) == [("a.txt", "sidecar")]
    assert [record.location.read() for record in records([str(tmp_path / "a.txt")])] == [encoded(noise(0))]


@pytest.mark.parametrize(
    ("name", "text", "entries"),
    [
        ("l.csv", "caption,URL\n'a, b',x.png\n", ["x.png"]),
        ("l.csv", "x.png,cat\ny.png,dog\n", ["x.png", "y.png"]),
        ("l.tsv", "label\tfile_name\n3\t a.png \n", ["a.png"]),
        ("l.txt", "\ufeffa.png\r\nb.png", ["a.png", "b.png"]),
        ("l.lst", "0\t3.0\tn01/a b.png\n", ["n01/a b.png"]),
    ],
)
def test_tables_of_paths(name: str, text: str, entries: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text.replace("'", '"'), encoding="utf-8")
    assert [record.key for record in records([str(tmp_path / name)])] == entries


def test_file_cut_after_it_was_listed_is_truncated(tmp_path: Path) -> None:
    path = npy_of(tmp_path / "a.npy", IMAGES)
    found = list(records([str(path)]))
    cut(path)
    with pytest.raises(Unreadable, match="truncated"):
        found[-1].location.read()
