"""Files that contradict their names or places: read by content, or reported with a remedy."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import yaml
from pool_pictures import encoded, folder_of, noise, some_files

import kd3
from kd3.models.load_teacher import load_teacher
from kd3.sources.finding import counts, list_records, records
from kd3.sources.labels import labelled_files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"1" * 64 + b"\nsize 77\n"


def tarred(files, mode):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo()
            member.filename = name  # as it is: the constructor would make slashes of backslashes
            archive.writestr(member, data)
    return buffer.getvalue()


FORMS = {"tar": lambda files: tarred(files, "w:"), "zip": zipped, "gz": lambda files: tarred(files, "w:gz")}
FORMS |= {"bz2": lambda files: tarred(files, "w:bz2"), "xz": lambda files: tarred(files, "w:xz")}


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tgz", "a.tar.xz"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("in_folder", [True, False])
def test_tars_and_zips_are_told_by_their_contents(name, form, in_folder, tmp_path):
    files = some_files(3)
    (tmp_path / name).write_bytes(FORMS[form](files))
    source = str(tmp_path if in_folder else tmp_path / name)
    found = list(records([source]))
    assert [record.location.read() for record in found] == list(files.values())
    assert list(counts([source])) in ([3], [None])


@pytest.mark.parametrize("form", ["zip", "tar", "gz"])
@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (FORMS["tar"](some_files(1)), "an archive inside another, or under another name, which is not opened: unpack"),
        (FORMS["bz2"](some_files(1)), "an archive inside another"),
        (FORMS["zip"](some_files(1)), "an archive inside another"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, protocol=4), "a pickle, perhaps a batch of CIFAR"),
        (POINTER, "a Git LFS pointer, which stands for the file: git lfs pull fetches it"),
        ("cat.png\r\ndog.png".encode("utf-16"), "text in UTF-16"),
    ],
    ids=["tar", "tar.bz2", "zip", "pickle", "pointer", "list"],
)
def test_what_lies_in_an_archive_and_is_no_image_is_named(form, inner, words, tmp_path):
    archive = tmp_path / {"zip": "a.zip", "tar": "a.tar", "gz": "a.tgz"}[form]
    archive.write_bytes(FORMS[form]({"inner": inner, **some_files(1)}))
    kd3.ingest(archive, tmp_path / "pool", image_size=16, workers=0)
    assert f"not an image,{words}" in (tmp_path / "pool" / "rejected.csv").read_text().replace('"', "")


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.zip", "x.parquet", "x.arrow", "x.npy", "x.npz", "x.png"])
def test_a_pointer_of_git_lfs_is_named_whatever_it_stands_for(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(kd3.KD3Error, match="a Git LFS pointer, which stands for the file: git lfs pull fetches it"):
        kd3.ingest(tmp_path / name, tmp_path / "pool", image_size=16, workers=0)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_checkpoint_that_is_a_pointer_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    values = {"arch": "kd3:resnet8", "weights": name, "num_classes": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**values, "input_size": 16}))
    with pytest.raises(kd3.KD3Error, match=f"{name} is a Git LFS pointer"):
        load_teacher(str(tmp_path / "t.yaml"))
    assert torch.is_inference_mode_enabled() is False


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_a_list_in_utf_16_is_read(encoding, name, tmp_path):
    folder_of(tmp_path, {"ä.png": encoded(noise(1)), "b.png": encoded(noise(2))})
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    head = "path\r\n" if name.endswith("csv") else ""
    (tmp_path / name).write_bytes((mark + head + "ä.png\r\nb.png\r\n").encode(encoding))
    found = {record.key: record.location.read() for record in list_records([str(tmp_path / name)])}
    assert found == {"ä.png": encoded(noise(1)), "b.png": encoded(noise(2))}


def test_backslashes_of_a_zip_from_windows_are_folders(tmp_path):
    files = {f"{kind}\\{number}.png": encoded(noise(number)) for number, kind in enumerate(("fig", "fig", "kiwi"))}
    (tmp_path / "w.zip").write_bytes(zipped(files))
    found = labelled_files(str(tmp_path / "w.zip"))
    assert [record.key for record in found.records] == ["fig/0.png", "fig/1.png", "kiwi/2.png"]
    assert [label.name for label in found.labels] == ["fig", "fig", "kiwi"]


def test_backslashes_in_a_zip_with_slashes_are_letters(tmp_path):
    (tmp_path / "w.zip").write_bytes(zipped({"a\\b.png": encoded(noise(1)), "c/d.png": encoded(noise(2))}))
    assert [record.key for record in records([str(tmp_path / "w.zip")])] == ["a\\b.png", "c/d.png"]
