"""A diffusers pipeline from a folder or the hub, of the class that an adapter speaks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def check_class(pipe: Any, pipeline_class: str) -> None:
    """Refuse a pipeline that is not a ``pipeline_class`` of diffusers.

    Raises:
        ValueError: naming both classes.
    """
    import diffusers

    if not isinstance(pipe, getattr(diffusers, pipeline_class)):
        raise ValueError(
            f"this adapter wraps a {pipeline_class}, got {type(pipe).__name__}: use the adapter of its family"
        )


def load_diffusers(
    source: str,
    *,
    pipeline_class: str,
    optional: Sequence[str],
    dtype: torch.dtype,
    device: str | torch.device,
    revision: str | None,
    variant: str | None,
    local_files_only: bool,
    replacing: Mapping[str, Any] | None = None,
) -> Any:
    """Load a diffusers folder or a hub id; ``dtype`` is for everything but the autoencoder, which is float32.

    Args:
        source: a folder or a hub id.
        pipeline_class: what its ``model_index.json`` must name.
        optional: components that a pipeline may have been saved without.
        dtype: of network and text encoders.
        device: where everything goes.
        revision, variant, local_files_only: as diffusers takes them.
        replacing: components and settings to load in place of the stored ones.

    Raises:
        ValueError: if it is a pipeline of another class.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    where = {"revision": revision, "local_files_only": local_files_only}
    index: Any = DiffusionPipeline.load_config(source, **where)
    if index.get("_class_name") != pipeline_class:
        raise ValueError(f"{source} holds a {index.get('_class_name')}: use the adapter of its family")
    # A pipeline saved without a component cannot be loaded unless diffusers is told that there is none.
    absent = {name: None for name in optional if index.get(name, [None])[0] is None}
    with _without_torchvision_notice():
        pipe: Any = DiffusionPipeline.from_pretrained(
            source,
            dtype={"vae": torch.float32, "default": dtype},
            variant=variant,
            **where,
            **{**absent, **(replacing or {})},
        )
    pipe.to(device)
    return pipe


@contextmanager
def _without_torchvision_notice() -> Iterator[None]:
    """Keep transformers from advising torchvision for image processors that text-to-image pipelines never call."""
    logger = logging.getLogger("transformers.utils.import_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
