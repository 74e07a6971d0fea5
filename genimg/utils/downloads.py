"""Explain why a download failed."""

from __future__ import annotations

import errno
import re

from genimg.errors import first_line

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def reason_of(error: BaseException) -> str:
    """Return why a download by torchvision or torch hub failed, as a phrase: the network, the server, the digest or the disk.

    Args:
        error: The raised error. torchvision's message may quote an error of each mirror, of which the last one counts.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return "the disk is full"
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        return f"{error.filename or 'the directory'} cannot be written: {error.strerror}"
    text = (re.findall(r"got:\n(.+)", str(error)) or [str(error)])[-1]
    if answers := re.findall(r"HTTP Error (\d+): (.*)", text):
        return f"the server answered {answers[-1][0]} {answers[-1][1].strip()}".strip()
    if problems := re.findall(r"<urlopen error (?:\[Errno -?\d+\] )?(.*)>", text):
        return f"no connection to the server: {problems[-1]}"
    if "corrupted" in text or "invalid hash value" in text:
        return "a downloaded file does not have the published digest, so it is incomplete or another file"
    return text.strip().splitlines()[0] if text.strip() else first_line(error)
