"""An extractor that torch.export saved.

Loading such a file can run code that it holds. So configs may name this module only where the command line says
``allow=[genimg.evaluation.extractors.program]``: a config may come out of a downloaded checkpoint.
"""

from __future__ import annotations

import torch

from genimg.errors import DataError
from genimg.evaluation.extractors.base import check_sha256, existing, in_one_line, sha256_of
from genimg.evaluation.extractors.custom import CustomExtractor
from genimg.utils.machine_local import LocalPath


class Program(CustomExtractor):
    """A network that ``torch.export.save`` wrote: needs no code of yours. Its batch dimension must be dynamic.

    Args:
        program: path of the .pt2 file.
        name, sha256, channels, image_size: see Module.

    Raises:
        DataError: If there is no such file, it is not an exported program, or its digest is another.
        ConfigError: For other values of parameters, or if it returns something else.
    """

    def __init__(
        self, *, name: str, program: LocalPath, sha256: str | None, channels: int | None, image_size: int | None
    ) -> None:
        path = existing(program, "program")
        found = sha256_of(path)
        check_sha256(path, found, sha256)
        try:
            network = torch.export.load(path).module()
        except Exception as error:  # a file of another kind makes the loader raise nearly anything
            raise DataError(f"program={program} is not a program of torch.export.save ({in_one_line(error)})") from error
        network.eval = lambda: network  # type: ignore[method-assign]  # an exported program has one mode and refuses to change it
        super().__init__(name, network, found, channels, image_size)
