"""Does a picture show the text that its prompt quotes? Read by OCR, compared letter by letter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.media_check import check_media, refuse_gradient
from difalign.reward_models.scorer_input import metadata_rows, picture_bytes
from difalign.reward_models.target_text import read_target_text, without_spaces, without_whitespace

Picture = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]  # [H, W, 3] RGB
TextReader = Callable[[Picture], str]

# What is left of a text before it is compared.
NORMALISATIONS: Mapping[str, Callable[[str], str]] = {"none": without_whitespace, "flow_grpo": without_spaces}


class UnreadablePictureError(RuntimeError):
    """The OCR engine broke on a picture; that is not to say that the picture shows nothing."""


def text_reward(target: str, read: str) -> float:
    """``1 - min(d, L) / L`` with the edit distance d to a target of L letters; 1 where the target is within the text.

    Flow-GRPO (arXiv 2505.05470), section 4.1, with the substring rule of its released code.
    """
    from rapidfuzz.distance import Levenshtein

    if target in read:
        return 1.0
    return 1.0 - min(Levenshtein.distance(read, target), len(target)) / len(target)


@final
class RapidOcrReader:
    """The lines of a picture, joined, by rapidocr; its wheel holds the models, so nothing is downloaded.

    Args:
        threads: of onnxruntime.
        min_confidence: lines that are read with less are left out.
    """

    def __init__(self, *, threads: int = 2, min_confidence: float = 0.5) -> None:
        from rapidocr import RapidOCR

        onnx = "EngineConfig.onnxruntime"
        self._engine = RapidOCR(
            params={
                "Global.log_level": "critical",  # it tells of every picture without text, and where its models lie
                "Global.text_score": min_confidence,
                f"{onnx}.intra_op_num_threads": threads,
                f"{onnx}.inter_op_num_threads": 1,
            }
        )
        self._failures = _engine_failures()

    def __call__(self, picture: Picture) -> str:
        """The text in a picture, top to bottom; empty where there is none.

        Raises:
            UnreadablePictureError: if the engine breaks.
        """
        try:
            found: Any = self._engine(picture[..., ::-1].copy())  # an array is taken for BGR
        except self._failures as error:
            last = (str(error).strip() or type(error).__name__).splitlines()[-1]  # the first lines are a trace
            raise UnreadablePictureError(f"rapidocr: {last}") from error
        return "".join(found.txts or ())


def _engine_failures() -> tuple[type[Exception], ...]:
    """What rapidocr, OpenCV and numpy raise for a picture that they cannot digest."""
    import cv2
    from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError
    from rapidocr.main import RapidOCRError
    from rapidocr.utils.load_image import LoadImageError
    from rapidocr.utils.process_img import ResizeImgError

    own = (ONNXRuntimeError, RapidOCRError, LoadImageError, ResizeImgError)
    return (*own, cv2.error, ValueError, RuntimeError, IndexError, ZeroDivisionError)


@final
@dataclass(slots=True)
class OcrReward:
    """``1 - min(d, L) / L`` between the text read and the text quoted, in [0, 1]; 1 where the latter is within.

    Compared without spaces, line ends and case. ``compat="flow_grpo"`` takes away spaces only, as its released code
    does: a target of two lines then never scores 1. A picture that the engine breaks on is not valid, whatever
    ``compat`` is; the released code gives it 0, which lifts the advantage of every other sample of its group.
    """

    compat: str = "none"  # or flow_grpo
    threads: int = 2  # own: rapidocr would take every core
    min_confidence: float = 0.5  # rapidocr's and PaddleOCR's
    reader: TextReader | None = None  # instead of rapidocr
    name: str = "ocr"
    differentiable: bool = False

    def __post_init__(self) -> None:
        if self.compat not in NORMALISATIONS:
            raise ValueError(f"compat = {self.compat!r}: use one of: {', '.join(NORMALISATIONS)}")
        if self.threads < 1:
            raise ValueError(f"threads = {self.threads}: must be at least 1")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError(f"min_confidence = {self.min_confidence}: must lie in [0, 1]")

    def score(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Metadata | None = None,
        sigma: float | None = None,
    ) -> RewardOutput:
        """Score pictures [N, 3, H, W] in [0, 1] against the text that each prompt quotes; ``sigma`` is not used.

        Components: ``exact``, whether the text is there letter by letter.

        Raises:
            ValueError: for a prompt without a target, or media of another layout.
        """
        check_media(media, prompts, reader=self.name)
        refuse_gradient(media, reader=self.name)
        rows = metadata_rows(prompts, metadata)
        bare = NORMALISATIONS[self.compat]
        targets = [bare(read_target_text(prompt, row)) for prompt, row in zip(prompts, rows, strict=True)]
        scores, errors = torch.full((len(prompts),), torch.nan), dict[int, str]()
        for row, picture in enumerate(picture_bytes(media)):
            try:
                scores[row] = text_reward(targets[row], bare(self._read(picture)))
            except UnreadablePictureError as error:
                errors[row] = str(error)
        valid = ~scores.isnan()
        exact = torch.where(valid, (scores == 1.0).float(), torch.nan)
        device = media.device
        return RewardOutput(scores.to(device), {"exact": exact.to(device)}, valid.to(device), errors)

    def _read(self, picture: Picture) -> str:
        if self.reader is None:
            with _LOADING:
                if self.reader is None:
                    self.reader = RapidOcrReader(threads=self.threads, min_confidence=self.min_confidence)
        return self.reader(picture)


_LOADING = Lock()  # scoring may overlap with itself
