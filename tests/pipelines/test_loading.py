"""Loading is quiet about what text-to-image pipelines never use, and about nothing else."""

from __future__ import annotations

import logging

import pytest

from difalign.pipelines.loading import _without_torchvision_notice


def test_only_the_advice_to_install_torchvision_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers.utils.import_utils")
    advice = "`CLIPImageProcessor` requires torchvision (not installed)"
    with caplog.at_level(logging.WARNING, logger=logger.name):
        logger.propagate, before = True, logger.propagate
        try:
            with _without_torchvision_notice():
                logger.warning(advice)
                logger.warning("something else")
            logger.warning(advice)
        finally:
            logger.propagate = before
    said = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert said == ["something else", advice]
