"""genimg-verify: certify that a checkpoint is what an earlier one leads to."""

from __future__ import annotations

import logging
import sys

from omegaconf import DictConfig
from tqdm.contrib.logging import logging_redirect_tqdm

from genimg.api.verify import verify as verify_run
from genimg.config import untrusted
from genimg.config.options import read_options
from genimg.config.schema.commands import Verify
from genimg.errors import ConfigError
from genimg.utils.distributed import processes_of_torchrun, raise_on_any_rank, rank
from genimg.utils.files import check_writable, write_json
from genimg.utils.mappings import flatten
from genimg.utils.paths import expanded, relative

log = logging.getLogger(__name__)

_NOT_CERTIFIED = 3  # exit code; 1 is a bug, and 2 an error


def verify(composed: DictConfig) -> None:
    """Verify the run that the options name, print the certificate, and exit with 3 if a checkpoint is not certified."""
    options, groups = read_options(composed, Verify, untrusted.GROUPS)
    output = None if options.output is None else expanded("output", options.output)
    if output is not None and output.suffix != ".json":
        raise ConfigError(f"output={options.output} must end in .json, as the certificate is a JSON file: rename it")
    with processes_of_torchrun(options.device) as device_name:
        if rank() > 0:
            logging.disable(logging.WARNING)  # the first rank logs the same
        with raise_on_any_rank():
            if output is not None and rank() == 0:
                check_writable("output", output)
        with logging_redirect_tqdm():
            found = verify_run(
                options.run,
                first=options.first,
                last=options.last,
                all=options.all,
                data_root=options.data_root,
                init_from=options.init_from,
                device=device_name,
                threads=options.threads,
                allow=options.allow,
                named=flatten(groups) if groups else {},
            )
        log.info("%s", "\n".join(found.lines()))
        with raise_on_any_rank():
            if output is not None and rank() == 0:
                write_json(output, found.record())
                log.info("written to %s", relative(output))
    if not found.certified:
        sys.exit(_NOT_CERTIFIED)
