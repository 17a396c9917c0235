"""GenEval's rules over a Mask2Former and a CLIP that transformers reads.

The architecture is that of GenEval's own detector, but the weights are others, so that its scores are not GenEval's:
they serve to train and to compare runs among themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self, final, get_args

import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.geneval import COMPAT, FoundObject, KeepingRule, Verdict, judge, keep_objects
from difalign.reward_models.geneval_clauses import COLOURS, Task, read_task
from difalign.reward_models.media_check import check_media, refuse_gradient
from difalign.reward_models.scorer_input import metadata_rows

if TYPE_CHECKING:
    from difalign.reward_models.clip import ClipReward

Signal = Literal["partial", "strict", "official"]  # the parts of a ``Verdict``
Detector = Callable[[Tensor], Sequence[FoundObject]]  # of one picture [3, H, W] in [0, 1]
_GREY = 0x99 / 255  # GenEval's background of a crop, #999
_TEMPLATES = ("a photo of a {colour} {label}", "a photo of a {colour}-colored {label}", "a photo of a {colour} object")


class PictureColours(Protocol):
    """Names the colours of objects in a picture."""

    def __call__(self, picture: Tensor, label: str, found: Sequence[FoundObject]) -> Sequence[str]:
        """One of ``COLOURS`` an object of the class ``label`` in a picture [3, H, W] in [0, 1]."""
        ...


@final
class ClipColours:
    """The one of ten colours that CLIP finds nearest to an object, cut out on grey (GenEval, arXiv 2310.11513).

    A colour is the mean of three sentences' embeddings.
    """

    def __init__(self, clip: ClipReward) -> None:
        self.clip = clip
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, picture: Tensor, label: str, found: Sequence[FoundObject]) -> Sequence[str]:
        """One of ``COLOURS`` an object of the class ``label`` in a picture [3, H, W]."""
        return [COLOURS[int((self._colours(label) @ self._embedded(picture, thing)).argmax())] for thing in found]

    def to(self, device: str | torch.device) -> None:
        """Move the weights; sentences are read anew there."""
        self.clip.to(device)
        self._known.clear()

    def _embedded(self, picture: Tensor, thing: FoundObject) -> Tensor:
        return self.clip.embed_images(cut_out(picture, thing)[None])[0]

    def _colours(self, label: str) -> Tensor:
        """Unit vectors of the colours of a class, [10, D]."""
        if label not in self._known:
            sentences = [line.format(colour=colour, label=label) for colour in COLOURS for line in _TEMPLATES]
            embedded = self.clip.embed_texts(sentences).view(len(COLOURS), len(_TEMPLATES), -1).mean(dim=1)
            self._known[label] = torch.nn.functional.normalize(embedded, dim=-1)
        return self._known[label]


def cut_out(picture: Tensor, thing: FoundObject) -> Tensor:
    """The box of an object, everything outside its outline grey; [3, h, w], at least one pixel each way."""
    height, width = picture.shape[-2:]
    left, top = (min(max(int(thing.box[axis]), 0), side - 1) for axis, side in ((0, width), (1, height)))
    right, bottom = max(round(thing.box[2]), left + 1), max(round(thing.box[3]), top + 1)
    shown = picture if thing.mask is None else torch.where(thing.mask.to(picture.device), picture, _GREY)
    return shown[:, top:bottom, left:right]


@final
class GenEvalReward:
    """Whether objects, counts, colours and positions are as a prompt's metadata asks for.

    ``signal`` says which verdict is the score: ``partial``, the mean over clauses that Flow-GRPO trains on, at most 1;
    ``strict``, 1 if everything is exactly right; ``official``, GenEval's own, which overlooks surplus objects. All
    three are components.
    """

    differentiable = False

    def __init__(
        self,
        detector: Detector,
        colours: PictureColours,
        *,
        signal: str = "partial",
        compat: str = "none",
        keeping: KeepingRule | None = None,
        position_threshold: float = 0.1,
        name: str = "geneval-hf",
    ) -> None:
        for option, value, known in (("signal", signal, get_args(Signal)), ("compat", compat, tuple(COMPAT))):
            if value not in known:
                raise ValueError(f"{option} = {value!r}: use one of: {', '.join(known)}")
        self.name = name
        self.detector, self.colours = detector, colours
        self._signal, self._compat = signal, compat
        self._keeping = keeping or KeepingRule()
        self._position_threshold = position_threshold

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        colour_model: str = "openai/clip-vit-large-patch14",
        signal: str = "partial",
        compat: str = "none",
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        max_overlap: float = 1.0,
        position_threshold: float = 0.1,
        shorter: int = 800,
        longer: int = 1333,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        name: str = "geneval-hf",
    ) -> Self:
        """Load the detector from a folder or a hub repository, and the CLIP that names colours from another.

        Args:
            source: of the detector, a Mask2Former of COCO's instances.
            colour_model: a CLIPModel.
            signal: see the class.
            compat: see ``geneval.judge``.
            threshold: see ``KeepingRule``, as the three that follow.
            counting_threshold: for prompts with the tag counting.
            max_objects: of a class.
            max_overlap: 1 keeps all that overlap.
            position_threshold: see ``geneval.relations``.
            shorter: see ``Mask2FormerDetector``.
            longer: the same.
            device: where both compute.
            revision: of the detector's repository.
            name: of the reward.

        Raises:
            ValueError: if a folder is missing, holds another model, or an option is out of range.
        """
        from difalign.reward_models.clip import ClipReward
        from difalign.reward_models.mask2former import Mask2FormerDetector

        keeping = KeepingRule(threshold, counting_threshold, max_objects, max_overlap)
        least = min(threshold, counting_threshold)
        detector = Mask2FormerDetector.from_pretrained(
            source, least=least, shorter=shorter, longer=longer, device=device, revision=revision
        )
        colours = ClipColours(ClipReward.from_pretrained(colour_model, device=device))
        return cls(
            detector,
            colours,
            signal=signal,
            compat=compat,
            keeping=keeping,
            position_threshold=position_threshold,
            name=name,
        )

    def to(self, device: str | torch.device) -> None:
        """Move the weights of what has any."""
        for part in (self.detector, self.colours):
            move = getattr(part, "to", None)
            if move is not None:
                move(device)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score pictures [N, 3, H, W] in [0, 1] against the metadata of their prompts; ``sigma`` is not used.

        Raises:
            ValueError: for metadata that is missing or not GenEval's, or media of another layout.
        """
        check_media(media, prompts, reader=self.name)
        refuse_gradient(media, reader=self.name)
        rows = zip(prompts, metadata_rows(prompts, metadata), strict=True)
        tasks = [read_task(prompt, said) for prompt, said in rows]
        verdicts = [self._judge(picture, task) for picture, task in zip(media, tasks, strict=True)]
        parts = {
            part: torch.tensor([getattr(verdict, part) for verdict in verdicts], device=media.device)
            for part in get_args(Signal)
        }
        return RewardOutput(parts[self._signal], parts)

    def _judge(self, picture: Tensor, task: Task) -> Verdict:
        objects = keep_objects(self.detector(picture), task.tag, rule=self._keeping)

        def colours(label: str, found: Sequence[FoundObject]) -> Sequence[str]:
            return self.colours(picture, label, found)

        return judge(task, objects, colours, position_threshold=self._position_threshold, compat=self._compat)
