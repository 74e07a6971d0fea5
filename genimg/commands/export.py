"""genimg-export: write the network that makes the images to a file for other programs."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.config import untrusted
from genimg.config.compose import thaw
from genimg.config.options import read_options
from genimg.config.schema.commands import Export
from genimg.errors import ConfigError
from genimg.exporting.formats import FORMATS, require_packages
from genimg.exporting.networks import exportable
from genimg.exporting.parts import Choices, ExportedNetwork
from genimg.exporting.snippet import snippet
from genimg.exporting.writing import describe, describe_trials, write_checked
from genimg.methods.capabilities import Generates
from genimg.methods.options import require_truncation
from genimg.training.device import Precision, choose_device
from genimg.utils.files import check_writable, naming_full_disk
from genimg.utils.mappings import flatten
from genimg.utils.outputs import require_own_export
from genimg.utils.paths import expanded, relative, run_directory_of

log = logging.getLogger(__name__)


def export(composed: DictConfig) -> None:
    """Write one network of a checkpoint to a file, and check that the file makes the same images."""
    options, groups = read_options(composed, Export, untrusted.GROUPS)
    kind = options.format
    _check(options)
    require_packages(kind)
    named = flatten(groups) if groups else {}
    checkpoint = TrainedCheckpoint.open(options.ckpt, options.which, options.allow, named, weights=options.weights)
    device = choose_device(options.device)
    Precision("fp32", device).apply_globally()  # TF32 on GPUs would cause the largest difference
    method = checkpoint.method(device)
    if isinstance(method, Generates):
        method.before_sampling()
    choices = Choices(options.truncation, options.direction, options.model_mode)
    part = exportable(method, choices, checkpoint.facts)
    output = _output(options, checkpoint.path, part)
    record = describe(
        part, kind, choices, config=thaw(checkpoint.config), facts=checkpoint.facts, state=checkpoint.state,
        checkpoint=checkpoint.path, class_names=checkpoint.class_names, weights=checkpoint.weights_label,
    )  # fmt: skip
    with naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"):
        difference, part = write_checked(part, record, kind, output, device, options.allow)
    log.info("from %s, trained on %d images", relative(checkpoint.path), checkpoint.images)
    log.info("%s: %s (%.2f MB)", record["description"], relative(output), output.stat().st_size / 1e6)
    for line in (*(f"  takes  {port.describe()}" for port in part.inputs), f"  makes  {part.output.describe()}"):
        log.info("%s", line)
    for remark in (part.describe_sides(), *part.remarks):
        if remark:
            log.info("  %s", remark)
    log.info("largest difference from the checkpoint, %s: %.2g", describe_trials(part, kind, device), difference)
    log.info("%s", snippet(part, kind, relative(output)))


def _check(options: Export) -> None:
    """Check the options that do not depend on the model.

    Raises:
        ConfigError: If the output has the wrong suffix, or the truncation is out of range.
    """
    if options.output == "":
        raise ConfigError("output= is not the name of a file")
    suffix = FORMATS[options.format].suffix
    if options.output is not None and Path(options.output).suffix != suffix:
        raise ConfigError(
            f"output={options.output} must end in {suffix}, as files of format={options.format} do: rename it, or choose "
            "another format"
        )
    try:
        require_truncation(options.truncation)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _output(options: Export, checkpoint: Path, part: ExportedNetwork) -> Path:
    """Return the file to write, which replaces an earlier export.

    Raises:
        ConfigError: If the file cannot be written, or genimg-export did not write the existing one.
    """
    if options.output is not None:
        output = expanded("output", options.output)
    else:
        psi = "" if options.truncation is None else f"-truncation{options.truncation:g}"
        weights = "" if options.weights is None else f"-weights-{options.weights}"
        output = run_directory_of(checkpoint.parent) / f"{part.name}{psi}{weights}{FORMATS[options.format].suffix}"
    check_writable("output", output)
    require_own_export(output)
    return output
