"""difalign: align image and video diffusion models with rewards, by training and by search.

The public names are resolved on first use, so ``import difalign`` loads neither torch nor diffusers.
The trainer is offered as ``align`` and the search as ``find_best``, because ``difalign.train`` and ``difalign.search``
are the packages that hold them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difalign.api import load_pipeline, load_reward, sample, score
    from difalign.api import search as find_best
    from difalign.api import train as align

__version__ = "0.1.0"

__all__ = ["__version__", "align", "find_best", "load_pipeline", "load_reward", "sample", "score"]

# public name -> its name in difalign.api
_PUBLIC = {
    "align": "train",
    "find_best": "search",
    "load_pipeline": "load_pipeline",
    "load_reward": "load_reward",
    "sample": "sample",
    "score": "score",
}


def __getattr__(name: str) -> object:
    """Resolve a public name from ``difalign.api`` on first use and keep it.

    Raises:
        AttributeError: if ``name`` is not public.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module 'difalign' has no attribute {name!r}; public names: {', '.join(__all__)}")
    from difalign import api

    value = getattr(api, _PUBLIC[name])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
