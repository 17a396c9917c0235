"""What a reward answered, brought into one shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from difalign.core.types import RewardOutput


def checked(name: str, answer: RewardOutput, prompts: Sequence[object]) -> RewardOutput:
    """The answer in float32, with a reason for every row that is not valid, and NaN there.

    Raises:
        ValueError: if there is not one score a row.
    """
    for part, values in {"scores": answer.scores, **answer.components}.items():
        if values.shape != (len(prompts),):
            raise ValueError(
                f"reward {name} gave {part} of shape {tuple(values.shape)} for {len(prompts)} samples; it must give "
                f"one number a sample, shape ({len(prompts)},)"
            )
    scores = answer.scores.float()
    stated = torch.ones_like(scores, dtype=torch.bool) if answer.valid is None else answer.valid.to(scores.device)
    valid = stated & scores.isfinite()
    errors = {}
    for row in (~valid).nonzero().flatten().tolist():
        gave = f"gave {float(scores[row])}; it must be a finite number" if stated[row] else "could not score it"
        errors[row] = answer.errors.get(row, gave)
    # No gradient goes into a row that is not valid, but 0 times what is not finite behind it is not finite either: who
    # follows a gradient takes the media of the valid rows only.
    whole = scores if not errors else scores.masked_fill(~valid, torch.nan)
    components = {key: values.float() for key, values in answer.components.items()}
    return RewardOutput(whole, components, valid, errors)
