"""The text that a picture is asked to show: the first quotation of its prompt, or what its metadata says.

Neither torch nor an OCR library is imported here, so that prompt files can be checked before either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

KEY = "target_text"  # of a prompt's metadata
_QUOTED = re.compile('"([^"]*)"|“([^”]*)”')


def read_target_text(prompt: str, metadata: Mapping[str, object] | None = None) -> str:
    """The text to be read: ``target_text`` of the metadata where there is one, else the first quotation.

    Raises:
        ValueError: if there is neither, or nothing but spaces in it.
    """
    if metadata is not None and KEY in metadata:
        target = metadata[KEY]
        if not isinstance(target, str) or not target.split():
            raise ValueError(f"{KEY} = {target!r}: must be text with at least one character that is no space")
        return target
    quoted = _QUOTED.search(prompt)
    target = "" if quoted is None else quoted[1] or quoted[2] or ""
    if not target.split():
        raise ValueError(
            f'{prompt!r} does not say which text is to be shown; quote it, as in: a sign that says "OPEN", '
            f"or give the prompt the metadata {KEY}"
        )
    return target


def without_whitespace(text: str) -> str:
    """Lower case, without spaces, tabs and line ends."""
    return "".join(text.split()).lower()


def without_spaces(text: str) -> str:
    """Lower case, without the space character only, as Flow-GRPO's released code does."""
    return text.replace(" ", "").lower()
