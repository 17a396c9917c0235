"""A disk that can no longer be written: what is said, what stays, how to go on."""

from __future__ import annotations

import errno
import re

from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.train.checkpoint import list_checkpoints

_REFUSED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors, written in Rust, passes on the system's number


def refused_by_disk(error: Exception) -> bool:
    """Whether an error says that the disk is full, read-only or broken, rather than that the program is wrong."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _REFUSED
    found = _OS_ERROR.search(str(error))
    return found is not None and int(found[1]) in _REFUSED


def disk_failure(error: Exception, config: RunConfig) -> ConfigError:
    """The error of a run that could not write, with where it can be taken up again."""
    kept = list_checkpoints(config.run_folder)
    if kept:
        remedy = f"the checkpoint {kept[-1].folder.name} is whole: make room, then the same command with resume=latest"
    else:
        remedy = "make room, or use another output_dir; then start the run again with overwrite=true"
    return ConfigError(f"output_dir = {str(config.run_folder)!r}: can no longer be written ({error}); {remedy}")
