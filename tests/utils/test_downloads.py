import errno
from urllib.error import HTTPError, URLError

import pytest

from genimg.utils.downloads import reason_of

_NO_NETWORK = URLError(OSError(-2, "Name or service not known"))
_ABSENT = HTTPError("https://host/file", 404, "Not Found", None, None)  # type: ignore[arg-type]


def mirrors(*errors):
    """The error of torchvision's MNIST when every mirror has failed."""
    tried = "".join(f"Tried https://mirror/, got:\n{error}\n" for error in errors)
    return RuntimeError(f"Error downloading train-images-idx3-ubyte.gz:\n{tried}")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_NO_NETWORK, "no connection to the server: Name or service not known"),
        (URLError("timed out"), "no connection to the server: timed out"),
        (_ABSENT, "the server answered 404 Not Found"),
        (RuntimeError("File not found or corrupted."), "does not have the published digest"),
        (RuntimeError('invalid hash value (expected "ab", got "cd")'), "does not have the published digest"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "/data cannot be written: Permission denied"),
        (mirrors(_ABSENT, _NO_NETWORK), "no connection to the server: Name or service not known"),
        (mirrors(_NO_NETWORK, _ABSENT), "the server answered 404 Not Found"),
        (mirrors("a strange answer"), "a strange answer"),
        (OSError(), "OSError"),
        (RuntimeError("first line\nsecond line"), "first line"),
    ],
)
def test_the_reason_is_the_network_the_server_the_digest_or_the_disk(error, reason):
    assert reason in reason_of(error)
    assert "\n" not in reason_of(error)
