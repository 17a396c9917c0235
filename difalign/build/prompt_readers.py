"""Whether a reward can read a prompt, by the function that its card names."""

from __future__ import annotations

import inspect

from difalign.build.targets import resolve_target
from difalign.core.prompts import Prompt


def meaning_of(prompt: Prompt, reader: str) -> object:
    """What a card's ``prompt_reader`` makes of a prompt; one that takes ``metadata`` is told what stands beside it.

    Raises:
        ValueError: if the reward cannot score the prompt.
    """
    read = resolve_target(reader)
    assert callable(read), reader
    if "metadata" in inspect.signature(read).parameters:
        return read(prompt.text, prompt.metadata)
    return read(prompt.text)
