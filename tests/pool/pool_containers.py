"""The same pictures in every kind of container that kd3 reads, and a small web server."""

import gzip
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image
from pool_pictures import encoded, folder_of, tar_of, zip_of

Images = np.ndarray  # (N, H, W, 3) uint8


def pictures(count: int, side: int = 32, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def files_of(images: Images) -> dict[str, bytes]:
    return {f"{number:05d}.png": encoded(Image.fromarray(image)) for number, image in enumerate(images)}


def flat(images: Images) -> np.ndarray:
    """Rows of a red, a green and a blue plane, as in CIFAR's batches."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def parquet_of(path: Path, table: pa.Table, rows: int = 64) -> Path:
    pq.write_table(table, path, row_group_size=rows)
    return path


def structs_of(files: dict[str, bytes]) -> pa.Table:
    """As Hugging Face's datasets store images."""
    image = [{"bytes": data, "path": name} for name, data in files.items()]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({"label": list(range(len(image))), "image": pa.array(image, kind)})


def bytes_of(files: dict[str, bytes]) -> pa.Table:
    """As img2dataset stores images."""
    count = len(files)
    return pa.table(
        {
            "url": [f"https://host/{name}" for name in files],
            "key": [f"{number:09d}" for number in range(count)],
            "status": ["success"] * count,
            "error_message": pa.array([None] * count, pa.string()),
            "jpg": pa.array(list(files.values()), pa.binary()),
        }
    )


def arrow_of(path: Path, table: pa.Table, kind: Callable = pa.ipc.new_stream) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with kind(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    return path


def python2_pickle(value: object) -> bytes:
    """A pickle of a batch (a dict of bytes to lists of int or arrays uint8) as Python 2 and its NumPy wrote it."""

    def text(data: bytes) -> bytes:
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + len(data).to_bytes(4, "little") + data

    def number(count: int) -> bytes:
        return b"J" + count.to_bytes(4, "little")

    def item(value: object) -> bytes:
        if isinstance(value, bytes):
            return text(value)
        if isinstance(value, int):
            return number(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(item(key) + item(held) for key, held in value.items()) + b"u"
        assert isinstance(value, np.ndarray)
        dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xff" * 1
        dtype += b"J\xff\xff\xff\xffK\0tb"
        shape = b"(" + b"".join(map(number, value.shape)) + b"t"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
        return made + b"(K\1" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"

    return b"\x80\2" + item(value) + b"."


def cifar_of(folder: Path, images: Images, batches: int = 5) -> Path:
    """The folder of CIFAR-10's version for Python: batches of Python 2, and the names of the classes."""
    folder.mkdir()
    for number, part in enumerate(np.array_split(images, batches), 1):
        batch = {
            b"batch_label": b"training batch",
            b"labels": [0] * len(part),
            b"data": flat(part),
            b"filenames": [b"a_s_%06d.png" % n for n in range(len(part))],
        }
        (folder / f"data_batch_{number}").write_bytes(python2_pickle(batch))
    (folder / "batches.meta").write_bytes(python2_pickle({b"num_vis": 3072, b"label_names": [b"airplane", b"ship"]}))
    return folder


def cifar_binary(path: Path, images: Images, labels: int = 1) -> Path:
    rows = np.concatenate([np.full((len(images), labels), 7, dtype=np.uint8), flat(images)], axis=1)
    path.write_bytes(rows.tobytes())
    return path


def batch_of(path: Path, images: Images, protocol: int = 4) -> Path:
    """A batch of the small ImageNet, as the installed NumPy writes it."""
    batch = {"data": flat(images), "labels": [1] * len(images), "mean": flat(images).mean(axis=0)}
    path.write_bytes(pickle.dumps(batch, protocol))
    return path


def npy_of(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def npz_of(path: Path, compressed: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)  # type: ignore[arg-type]
    return path


def idx_of(path: Path, images: Images) -> Path:
    data = struct.pack(">HBB4I", 0, 8, 4, *images.shape) + images.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def list_of(path: Path, entries: list[str]) -> Path:
    path.write_text("".join(f"{entry}\n" for entry in entries))
    return path


def written(name: str, place: Path, images: Images) -> Path:
    """Write pictures (32 x 32) as one of `KINDS` into an empty folder; return the source."""
    place.mkdir()
    files = files_of(images)
    return KINDS[name](place, images, files)


def _listed(place: Path, files: dict[str, bytes], name: str, line: str = "{}") -> Path:
    folder_of(place / "images", files)
    header = ["id,path"] if name.endswith(".csv") else []
    return list_of(place / name, header + [line.format(f"images/{file}") for file in files])


KINDS: dict[str, Callable[[Path, Images, dict[str, bytes]], Path]] = {
    "folder": lambda place, images, files: folder_of(place / "folder", files),
    "tar": lambda place, images, files: tar_of(place / "a.tar", files),
    "tar.gz": lambda place, images, files: tar_of(place / "a.tar.gz", files, "w:gz"),
    "zip": lambda place, images, files: zip_of(place / "a.zip", files),
    "parquet of structs": lambda place, images, files: parquet_of(place / "a.parquet", structs_of(files)),
    "parquet of bytes": lambda place, images, files: parquet_of(place / "a.parquet", bytes_of(files)),
    "save_to_disk": lambda place, images, files: (
        arrow_of(place / "train/data-00000-of-00001.arrow", structs_of(files)).parent
    ),
    "arrow file": lambda place, images, files: arrow_of(place / "a.arrow", bytes_of(files), pa.ipc.new_file),
    "npy": lambda place, images, files: npy_of(place / "a.npy", images),
    "npy, channels first": lambda place, images, files: npy_of(place / "a.npy", images.transpose(0, 3, 1, 2).copy()),
    "npz": lambda place, images, files: npz_of(place / "a.npz", x=images, y=np.zeros(len(images))),
    "npz, compressed": lambda place, images, files: npz_of(place / "a.npz", compressed=True, x=images),
    "npz of ImageNet": lambda place, images, files: npz_of(place / "a.npz", data=flat(images), mean=np.zeros(3072)),
    "CIFAR": lambda place, images, files: cifar_of(place / "cifar-10-batches-py", images),
    "CIFAR, binary": lambda place, images, files: cifar_binary(place / "data_batch_1.bin", images),
    "CIFAR-100, binary": lambda place, images, files: cifar_binary(place / "train.bin", images, labels=2),
    "ImageNet batch": lambda place, images, files: batch_of(place / "train_data_batch_1", images),
    "ImageNet batch, protocol 2": lambda place, images, files: batch_of(place / "val_data", images, 2),
    "ImageNet batch, protocol 5": lambda place, images, files: batch_of(place / "val.pkl", images, 5),
    "idx": lambda place, images, files: idx_of(place / "train-images-idx3-ubyte", images),
    "idx, compressed": lambda place, images, files: idx_of(place / "train-images-idx3-ubyte.gz", images),
    "list": lambda place, images, files: _listed(place, files, "list.txt"),
    "list.csv": lambda place, images, files: _listed(place, files, "list.csv", "7,{}"),
    "list.lst": lambda place, images, files: _listed(place, files, "list.lst", "0\t1.0\t{}"),
}


class _Handler(SimpleHTTPRequestHandler):
    """Python's own server knows no ranges; this one answers them if it is told to, and fails a given number of
    times.
    """

    server: "WebServer"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(self.server.status)
            return
        if self.path == "/endless.jpg":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # until nobody listens any more
                while True:
                    self.wfile.write(bytes(1 << 16))
            return
        wanted = self.headers.get("Range") if self.server.ranges else None
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(data[start:end])


class WebServer(ThreadingHTTPServer):
    """A web server on this machine, of a folder."""

    daemon_threads = True

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.ranges = ranges
        self.failures, self.status = 0, 503
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def web_server(folder: Path, *, ranges: bool = True) -> Iterator[WebServer]:
    with WebServer(folder, ranges=ranges) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
