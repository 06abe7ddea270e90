"""Files that are there whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, whatever interrupts this.

    Raises:
        OSError: if it cannot be written, or something that is no regular file has this name.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
