"""genimg-augment: write changed copies of a folder's images, with their labels and captions."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from genimg.config.options import read_options
from genimg.config.schema.commands import Augment
from genimg.data.copies import RANGES, Job, Record, copy_name, read_image, stem, write_copies
from genimg.data.datasets.caption_files import find_captions
from genimg.data.datasets.file_index import list_images
from genimg.data.decode import PixelFormat
from genimg.data.packing import CORRUPT
from genimg.errors import ConfigError, DataError
from genimg.utils.environment import num_cores
from genimg.utils.files import atomically, check_output_directory, naming_full_disk
from genimg.utils.images import grid, to_float, write_png
from genimg.utils.outputs import own_folder, record_of, stamp_of
from genimg.utils.paths import expanded, relative
from genimg.utils.words import argument

log = logging.getLogger(__name__)

_COMMAND = "genimg-augment"
_WITHOUT_EFFECT = ("output", "num_workers", "traceback")  # on the copies
_SIDES = {"horizontal_flip": ("left", "right"), "vertical_flip": ("above", "below", "top", "bottom")}
_AHEAD = 4  # images a thread, so that none waits for another's large file
_MOST_ROWS, _MOST_COPIES, _CELL = 8, 8, 128  # of the preview; pixels of a cell


def augment(composed: DictConfig) -> None:
    """Write ``copies`` changed copies of every image of ``input`` to ``output``."""
    options, _ = read_options(composed, Augment)
    _check(options)
    root, output = _folders(options)
    paths = list_images(root, refresh=True).paths
    if not paths:
        raise DataError(f"input={root} holds no images: expected files such as .png or .jpg in it or in its subdirectories")
    _check_names(paths, options)
    job = Job(
        root=root,
        paths=paths,
        texts=_captions(root, paths, options),
        copies=options.copies,
        originals=options.originals,
        seed=options.seed,
        settings={key: getattr(options, key) for key in RANGES},
    )
    _warn_of_sides(job)
    start = time.monotonic()
    with (
        atomically(_preview_of(output)) as picture,
        own_folder(output, _record(options)) as folder,
        _one_torch_thread(),
        naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"),
    ):
        kept, problems = _write_all(job, folder, options)
        _write_preview(job, kept, folder, picture)
    _report(job, len(kept), len(problems), output, time.monotonic() - start)


def _record(options: Augment) -> Record:
    """What the folder says about itself; the same for the same copies, wherever and by however many threads they were made."""
    return record_of(_COMMAND, options={key: value for key, value in vars(options).items() if key not in _WITHOUT_EFFECT})


# What is refused before the work


def _check(options: Augment) -> None:
    for key in ("input", "output"):
        if getattr(options, key) == "":
            raise ConfigError(f"{key}= is not a directory's name")
    copies, workers, max_corrupt = options.copies, options.num_workers, options.max_corrupt
    if copies < 1:
        raise ConfigError(f"copies={copies} must be 1 or more copies of each image")
    if max_corrupt is not None and max_corrupt < 0:
        raise ConfigError(f"max_corrupt={max_corrupt} must be 0 or more images, or null to leave out all corrupt ones")
    if isinstance(workers, int) and workers < 1:
        raise ConfigError(f"num_workers={workers} must be auto, or 1 or more threads")
    for key, (least, most) in RANGES.items():
        if not least <= getattr(options, key) <= most:
            raise ConfigError(f"{key}={getattr(options, key)} must be a number from {least:g} to {most:g}")
    if all(getattr(options, key) == (key == "crop") for key in RANGES):
        raise ConfigError(f"every operation is switched off, so that copies would be equal: set one of {', '.join(RANGES)}")


def _folders(options: Augment) -> tuple[Path, Path]:
    """The input as it was given, and the output's absolute path."""
    root, output = (expanded(key, getattr(options, key)) for key in ("input", "output"))
    if not root.is_dir():
        what = "is a file, not a directory" if root.exists() else "does not exist"
        raise DataError(f"input={root} {what}: give a directory of images")
    output, real = output.resolve(), root.resolve()
    if output == real:
        raise ConfigError(f"output={output} is the input itself: name another directory")
    if output.is_relative_to(real):
        raise ConfigError(f"output={output} lies inside input={root}, whose images its own would join: name one beside it")
    if real.is_relative_to(output):
        raise ConfigError(f"input={root} lies inside output={output}: name another output")
    check_output_directory(output)
    if _preview_of(output).exists():
        raise ConfigError(f"output={output} would have its preview in {_preview_of(output)}, which exists: move that away")
    return root, output


def _check_names(paths: Sequence[str], options: Augment) -> None:
    """Refuse files whose copies would have the same name, and mixes of one image."""
    of_stem: dict[str, str] = {}
    for path in paths:
        other = of_stem.setdefault(stem(path), path)
        if other != path:
            raise DataError(f"copies of {other} and of {path} would both be called {copy_name(path, 0)}: rename one of them")
    for path in paths if options.originals else ():
        match = re.fullmatch(r"(.+)-(0|[1-9]\d*)\.png", path, re.DOTALL)
        if match and match[1] in of_stem and int(match[2]) < options.copies:
            raise ConfigError(
                f"originals=true: a copy of {of_stem[match[1]]} would be called {path}, as an original is: set "
                "originals=false, or rename one of them"
            )
    for key in ("mixup", "cutmix"):
        if getattr(options, key) and len(paths) == 1:
            raise ConfigError(
                f"{key}={getattr(options, key)} mixes two images, and input={options.input} holds one: set {key}=0"
            )


def _captions(root: Path, paths: Sequence[str], options: Augment) -> list[str] | None:
    found = find_captions(root, paths, options.captions)
    return None if found is None else found.texts


def _warn_of_sides(job: Job) -> None:
    """Say once which captions a flip would make untrue."""
    for key, words in _SIDES.items():
        if not job.settings[key] or job.texts is None:
            continue
        pattern = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)
        found = [index for index, text in enumerate(job.texts) if pattern.search(text)]
        if found:
            log.warning(
                "%s=%s changes no caption, and %d say %s, the first that of %s (%r): set %s=0 where that makes them wrong",
                key, job.settings[key], len(found), " or ".join(words), job.paths[found[0]], job.texts[found[0]], key,
            )  # fmt: skip


# Files


def _write_all(job: Job, folder: Path, options: Augment) -> tuple[list[int], list[str]]:
    """Write copies of all images and ``metadata.jsonl``; the indices of the images, and what was corrupt.

    Raises:
        DataError: If there are too many corrupt images, or nothing else.
        OSError: if a file cannot be written.
    """
    for parent in {PurePosixPath(path).parent for path in job.paths}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    kept: list[int] = []
    problems: list[str] = []
    allowed, count = options.max_corrupt, job.copies
    workers = options.num_workers if isinstance(options.num_workers, int) else num_cores()
    with (
        # What stands for a byte of a name that is not UTF-8 is written as \udcXX, which JSON reads back.
        open(folder / "metadata.jsonl", "w", encoding="utf-8", errors="backslashreplace", newline="\n") as metadata,
        contextlib.closing(_made(job, folder, workers)) as results,
        tqdm(total=count * len(job.paths), desc=f"augmenting {job.root}", unit="image", disable=None) as progress,
    ):
        for index, result in enumerate(results):
            if isinstance(result, str):
                problems.append(result)
                if allowed is not None and len(problems) > allowed:
                    raise DataError(_too_many(problems, allowed), key="max_corrupt")
            else:
                kept.append(index)
                metadata.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in result)
            progress.update(count)
    if not kept:
        raise DataError(f"input={job.root}: none of its {len(job.paths)} images can be decoded; the first: {problems[0]}")
    if problems:
        (folder / CORRUPT).write_text("\n".join(problems) + "\n", encoding="utf-8", errors="surrogateescape")
    return kept, problems


def _made(job: Job, folder: Path, workers: int) -> Generator[list[Record] | str, None, None]:
    """The lines about each image's copies, or what is wrong with it, in order; the copies are written by then."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[list[Record] | str]] = deque()
    stopped = threading.Event()
    try:
        for index in range(len(job.paths)):
            waiting.append(pool.submit(write_copies, job, index, folder, stopped))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _write_preview(job: Job, kept: Sequence[int], folder: Path, picture: Path) -> None:
    """Images from all parts of the folder, each in a row with its first copies."""
    rows = min(len(kept), _MOST_ROWS)
    shown = [kept[row * len(kept) // rows] for row in range(rows)]
    copies = range(min(job.copies, _MOST_COPIES))
    files = [[job.root / job.paths[i], *(folder / copy_name(job.paths[i], number) for number in copies)] for i in shown]
    cells = torch.stack([_cell(file) for row in files for file in row])
    write_png(grid(to_float(cells), 1 + len(copies)), picture, stamp_of(_COMMAND))


def _cell(file: Path) -> Tensor:
    """The image, on white in the middle of a square: uint8 [3, S, S]; small ones are enlarged with hard edges."""
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
    """Images keep the cores busy; and the sum of many pixels would depend on the number of threads that add."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _preview_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.png")


def _too_many(problems: list[str], allowed: int) -> str:
    names = "\n  ".join(problems[:10])
    return (
        f"{len(problems)} corrupt image{'s' * (len(problems) > 1)}, more than max_corrupt={allowed} allows; remove or repair "
        f"them, or leave them out with a higher max_corrupt:\n  {names}"
    )


def _report(job: Job, count: int, num_corrupt: int, output: Path, seconds: float) -> None:
    written = count * job.copies
    log.info(
        "%d copies of %d image%s%s in %.1f s (%.0f copies/s): %s",
        written, count, "s" * (count > 1), ", and the originals," if job.originals else "", seconds,
        written / seconds, relative(output),
    )  # fmt: skip
    if num_corrupt:
        log.warning("%d corrupt image%s left out: %s", num_corrupt, "s" * (num_corrupt > 1), relative(output / CORRUPT))
    log.info("some of them: %s", relative(_preview_of(output)))
    log.info("to train on it: genimg-train data=folder %s", argument("data.root", relative(output)))
