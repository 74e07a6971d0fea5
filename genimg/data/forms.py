"""Recognise the form of a dataset on disk by the names of its files, without opening it."""

from __future__ import annotations

import zipfile
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from genimg.utils.pillow import suffixes

_HUGGING_FACE = (("dataset_dict.json",), ("dataset_info.json", "state.json"))  # files that save_to_disk writes
_LMDB = "data.mdb"
_LATENTS = "img-mean-std-*.npy"
_LOOKED_AT = 1000  # entries of a directory


def form_of(path: Path) -> str | None:
    """Return the option of the group ``data`` that reads a directory or file; None for other ones, such as folders of images.

    Returns:
        ``huggingface``, ``lmdb`` or ``webdataset``. A directory with images besides .tar files is none of these.
    """
    if not path.is_dir():
        return "webdataset" if path.suffix.lower() == ".tar" else None
    if is_saved_by_huggingface(path):
        return "huggingface"
    if (path / _LMDB).is_file():
        return "lmdb"
    found = {entry.suffix.lower() for entry in islice(path.iterdir(), _LOOKED_AT)}
    return "webdataset" if ".tar" in found and not found & set(suffixes()) else None


def is_saved_by_huggingface(folder: Path) -> bool:
    """Return whether ``save_to_disk`` of Hugging Face's package datasets wrote a directory."""
    return any(all((folder / name).is_file() for name in names) for names in _HUGGING_FACE)


def other_content(path: Path) -> str:
    """Return a phrase about what a directory or zip file holds instead of images, and how to use it; empty if unknown."""
    form = form_of(path)
    if form is not None:
        return f"data in another form: read it with data={form} data.root={path}"
    if _holds_latents(path):
        return (
            "latents of an autoencoder (img-mean-std-*.npy), as EDM2's dataset tool writes them: give the zip file or "
            "directory of images from which they were made"
        )
    return ""


def _holds_latents(path: Path) -> bool:
    """Return whether a directory or zip file has the names of latents that EDM2's dataset tool writes."""
    if path.is_dir():
        return next(path.glob(f"*/{_LATENTS}"), None) is not None
    try:
        with zipfile.ZipFile(path) as archive:
            return any(fnmatch(name, f"*/{_LATENTS}") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
