"""Write augmented copies of all images of a folder, for genimg-augment: files, metadata and a preview."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genimg.data.copies import CopyJob, Record, copy_name, read_image, stem, write_copies
from genimg.data.corrupt import too_many
from genimg.data.decode import PixelFormat
from genimg.data.packing import CORRUPT
from genimg.errors import ConfigError, DataError
from genimg.utils.files import atomically, naming_full_disk
from genimg.utils.images import grid, to_float, write_png
from genimg.utils.outputs import own_folder, stamp_of
from genimg.utils.progress import Progress
from genimg.utils.threads import map_in_order

log = logging.getLogger(__name__)

_SIDES = {"horizontal_flip": ("left", "right"), "vertical_flip": ("above", "below", "top", "bottom")}
_MOST_ROWS, _MOST_COPIES, _CELL = 8, 8, 128  # rows and columns of the preview; pixels of a cell


def check_job(job: CopyJob) -> None:
    """Reject files whose copies would have the same name, and mixing with a single image.

    Raises:
        DataError: If two images differ only in their extensions.
        ConfigError: If a copy would have the name of an original, or there is no other image to mix with.
    """
    of_stem: dict[str, str] = {}
    for path in job.paths:
        other = of_stem.setdefault(stem(path), path)
        if other != path:
            raise DataError(f"copies of {other} and of {path} would both be called {copy_name(path, 0)}: rename one of them")
    for path in job.paths if job.originals else ():
        match = re.fullmatch(r"(.+)-(0|[1-9]\d*)\.png", path, re.DOTALL)
        if match and match[1] in of_stem and int(match[2]) < job.copies:
            raise ConfigError(
                f"originals=true: a copy of {of_stem[match[1]]} would be called {path}, which is also an original: set "
                "originals=false, or rename one of them"
            )
    for key in ("mixup", "cutmix"):
        if job.settings[key] and len(job.paths) == 1:
            raise ConfigError(f"{key}={job.settings[key]} mixes two images, but input={job.root} holds only one: set {key}=0")


def warn_of_sides(job: CopyJob) -> None:
    """Warn of captions that a flip would make wrong, once for each direction."""
    for key, words in _SIDES.items():
        if not job.settings[key] or job.texts is None:
            continue
        pattern = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)
        found = [index for index, text in enumerate(job.texts) if pattern.search(text)]
        if found:
            log.warning(
                "%s=%s does not change captions, but %d of them say %s, such as that of %s (%r): set %s=0 if that makes them "
                "wrong",
                key, job.settings[key], len(found), " or ".join(words), job.paths[found[0]], job.texts[found[0]], key,
            )  # fmt: skip


def preview_of(output: Path) -> Path:
    """Return the path of the preview, an image file beside the folder."""
    return output.with_name(f"{output.name}.png")


def write_folder(job: CopyJob, output: Path, record: Record, *, max_corrupt: int | None, num_workers: int) -> tuple[int, int]:
    """Write copies of all images, ``metadata.jsonl`` and the preview atomically.

    Args:
        job: Images and settings.
        output: Absolute path of the folder, which must not exist.
        record: Metadata stored in the folder.
        max_corrupt: Number of corrupt images to skip and list in corrupt.txt before stopping; None skips all.
        num_workers: Number of threads.

    Returns:
        The number of copied images and the number of corrupt images.

    Raises:
        DataError: If too many images are corrupt, or all of them are.
        OSError: If a file cannot be written.
    """
    with (
        atomically(preview_of(output)) as picture,
        own_folder(output, record) as folder,
        _one_torch_thread(),
        naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"),
    ):
        kept, problems = _write_all(job, folder, max_corrupt, num_workers)
        _write_preview(job, kept, folder, picture, record["made_by"])
    return len(kept), len(problems)


def _write_all(job: CopyJob, folder: Path, max_corrupt: int | None, num_workers: int) -> tuple[list[int], list[str]]:
    """Write copies of all images and ``metadata.jsonl``; return the indices of the images and the errors of corrupt ones."""
    for parent in {PurePosixPath(path).parent for path in job.paths}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    kept: list[int] = []
    problems: list[str] = []
    with (
        # A byte of a name that is not UTF-8 is written as \udcXX, which JSON reads back.
        open(folder / "metadata.jsonl", "w", encoding="utf-8", errors="backslashreplace", newline="\n") as metadata,
        contextlib.closing(_made(job, folder, num_workers)) as results,
        Progress(total=job.copies * len(job.paths), desc=f"augmenting {job.root}", unit="image") as progress,
    ):
        for index, result in enumerate(results):
            if isinstance(result, str):
                problems.append(result)
                if max_corrupt is not None and len(problems) > max_corrupt:
                    raise too_many(problems, max_corrupt)
            else:
                kept.append(index)
                metadata.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in result)
            progress.update(job.copies)
    if not kept:
        raise DataError(f"input={job.root}: none of its {len(job.paths)} images can be decoded; the first: {problems[0]}")
    if problems:
        (folder / CORRUPT).write_text("\n".join(problems) + "\n", encoding="utf-8", errors="surrogateescape")
    return kept, problems


def _made(job: CopyJob, folder: Path, workers: int) -> Generator[list[Record] | str, None, None]:
    """Write the copies of each image in threads, and return their records or the image's error, in order."""
    stopped = threading.Event()

    def write(index: int) -> list[Record] | str:
        return write_copies(job, index, folder, stopped)

    return map_in_order(write, range(len(job.paths)), num_threads=workers, stopped=stopped)


def _write_preview(job: CopyJob, kept: Sequence[int], folder: Path, picture: Path, command: str) -> None:
    """Write a grid of images from all parts of the folder, each in a row with its first copies."""
    rows = min(len(kept), _MOST_ROWS)
    shown = [kept[row * len(kept) // rows] for row in range(rows)]
    copies = range(min(job.copies, _MOST_COPIES))
    files = [[job.root / job.paths[i], *(folder / copy_name(job.paths[i], number) for number in copies)] for i in shown]
    cells = torch.stack([_cell(file) for row in files for file in row])
    write_png(grid(to_float(cells), 1 + len(copies)), picture, stamp_of(command))


def _cell(file: Path) -> Tensor:
    """Return an image centred on a white square, uint8 [3, S, S]; small images are enlarged by nearest neighbour."""
    image = Image.fromarray(read_image(file, _rgb_of(file)).permute(1, 2, 0).numpy())
    scale = _CELL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (_CELL, _CELL), "white")
    cell.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return torch.from_numpy(np.array(cell)).permute(2, 0, 1)


def _rgb_of(file: Path) -> PixelFormat:
    _, height, width = read_image(file).shape
    return PixelFormat(height, width, 3)


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Limit PyTorch to one thread: images run in parallel, and sums of many pixels depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
