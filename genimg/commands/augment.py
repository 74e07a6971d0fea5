"""genimg-augment: write augmented copies of a folder's images, with their labels and captions."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from omegaconf import DictConfig

from genimg.config.options import read_options
from genimg.config.schema.commands import Augment
from genimg.data.copies import RANGES, CopyJob
from genimg.data.copy_folder import check_job, preview_of, warn_of_sides, write_folder
from genimg.data.datasets.caption_files import find_captions
from genimg.data.datasets.file_index import list_images
from genimg.data.packing import CORRUPT
from genimg.errors import ConfigError, DataError
from genimg.utils.environment import num_cores
from genimg.utils.files import check_output_directory
from genimg.utils.outputs import record_of
from genimg.utils.paths import expanded, relative
from genimg.utils.words import argument

log = logging.getLogger(__name__)

_COMMAND = "genimg-augment"
_WITHOUT_EFFECT = ("output", "num_workers", "traceback")  # options that do not change the copies


def augment(composed: DictConfig) -> None:
    """Write ``copies`` augmented copies of every image of ``input`` to ``output``."""
    options, _ = read_options(composed, Augment)
    _check(options)
    root, output = _folders(options)
    paths = list_images(root, refresh=True).paths
    if not paths:
        raise DataError(f"input={root} holds no images: expected files such as .png or .jpg in it or in its subdirectories")
    captions = find_captions(root, paths, options.captions)
    job = CopyJob(
        root=root,
        paths=paths,
        texts=None if captions is None else captions.texts,
        copies=options.copies,
        originals=options.originals,
        seed=options.seed,
        settings={key: getattr(options, key) for key in RANGES},
    )
    check_job(job)
    warn_of_sides(job)
    start = time.monotonic()
    # Equal copies have equal records, whatever the output directory and the number of threads.
    record = record_of(_COMMAND, options={key: value for key, value in vars(options).items() if key not in _WITHOUT_EFFECT})
    workers = options.num_workers if isinstance(options.num_workers, int) else num_cores()
    kept, corrupt = write_folder(job, output, record, max_corrupt=options.max_corrupt, num_workers=workers)
    _report(job, kept, corrupt, output, time.monotonic() - start)


def _check(options: Augment) -> None:
    for key in ("input", "output"):
        if getattr(options, key) == "":
            raise ConfigError(f"{key}= is not a directory's name")
    copies, workers, max_corrupt = options.copies, options.num_workers, options.max_corrupt
    if copies < 1:
        raise ConfigError(f"copies={copies} must be 1 or more copies of each image")
    if max_corrupt is not None and max_corrupt < 0:
        raise ConfigError(f"max_corrupt={max_corrupt} must be 0 or more images, or null to skip all corrupt ones")
    if isinstance(workers, int) and workers < 1:
        raise ConfigError(f"num_workers={workers} must be auto, or 1 or more threads")
    for key, (least, most) in RANGES.items():
        if not least <= getattr(options, key) <= most:
            raise ConfigError(f"{key}={getattr(options, key)} must be a number from {least:g} to {most:g}")
    if all(getattr(options, key) == (key == "crop") for key in RANGES):
        raise ConfigError(f"every operation is switched off, so all copies would be the same: set one of {', '.join(RANGES)}")


def _folders(options: Augment) -> tuple[Path, Path]:
    """Return the input as it was given, and the output's absolute path.

    Raises:
        DataError: If the input is not a directory.
        ConfigError: If the output cannot be written there.
    """
    root, output = (expanded(key, getattr(options, key)) for key in ("input", "output"))
    if not root.is_dir():
        what = "is a file, not a directory" if root.exists() else "does not exist"
        raise DataError(f"input={root} {what}: give a directory of images")
    output, real = output.resolve(), root.resolve()
    if output == real:
        raise ConfigError(f"output={output} is the input itself: name another directory")
    if output.is_relative_to(real):
        raise ConfigError(f"output={output} lies inside input={root}, and would become part of it: name a directory outside it")
    if real.is_relative_to(output):
        raise ConfigError(f"input={root} lies inside output={output}: name another output")
    check_output_directory(output)
    if preview_of(output).exists():
        raise ConfigError(f"the preview of output={output} would replace {preview_of(output)}: move that away")
    return root, output


def _report(job: CopyJob, count: int, num_corrupt: int, output: Path, seconds: float) -> None:
    written = count * job.copies
    log.info(
        "%d copies of %d image%s%s in %.1f s (%.0f copies/s): %s",
        written, count, "s" * (count > 1), ", and the originals," if job.originals else "", seconds,
        written / seconds, relative(output),
    )  # fmt: skip
    if num_corrupt:
        log.warning("%d corrupt image%s skipped: %s", num_corrupt, "s" * (num_corrupt > 1), relative(output / CORRUPT))
    log.info("some of them: %s", relative(preview_of(output)))
    log.info("to train on it: genimg-train data=folder %s", argument("data.root", relative(output)))
