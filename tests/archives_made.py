"""Archives that tests write."""

import io
import tarfile
import zipfile
from pathlib import Path


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """Write files into a tar."""
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def zip_of(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write files into a zip."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
