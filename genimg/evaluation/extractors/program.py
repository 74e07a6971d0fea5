"""Extractors saved by torch.export.

Loading such a file can run code from it, and a config may come from a downloaded checkpoint. Configs may therefore name this
module only if the command line contains ``allow=[genimg.evaluation.extractors.program]``.
"""

from __future__ import annotations

import torch

from genimg.errors import DataError
from genimg.evaluation.extractors.base import check_sha256, existing, in_one_line
from genimg.evaluation.extractors.custom import CustomExtractor
from genimg.utils.files import sha256_of
from genimg.utils.machine_local import LocalPath


class Program(CustomExtractor):
    """A network saved by ``torch.export.save``, which loads without its source code. Its batch dimension must be dynamic.

    Args:
        program: Path of the .pt2 file.
        name, sha256, channels, image_size: See Module.

    Raises:
        DataError: If the file does not exist, is not an exported program, or has another digest.
        ConfigError: If a parameter is invalid, or the network does not return features.
    """

    def __init__(
        self, *, name: str, program: LocalPath, sha256: str | None, channels: int | None, image_size: int | None
    ) -> None:
        path = existing(program, "program")
        found = sha256_of(path)
        check_sha256(path, found, sha256)
        try:
            network = torch.export.load(path).module()
        except Exception as error:  # the loader can raise almost anything for other kinds of file
            raise DataError(f"program={program} is not a program of torch.export.save ({in_one_line(error)})") from error
        network.eval = lambda: network  # type: ignore[method-assign]  # exported programs have one mode; their eval() raises
        super().__init__(name, network, found, channels, image_size)
