"""From the folder of a bank to its students, by the kind that the bank names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from difalign.core.protocols import NetworkReward, ReadsTexts, RewardModel
from difalign.core.student_bank import BankLevel, StudentBank, file_sha256, reward_sha256
from difalign.core.student_form import FullForm, StudentForm
from difalign.reward_models.checkpoints import load_strictly, read_state_dict
from difalign.reward_models.latent_network import LatentNetwork, LatentNetworkConfig
from difalign.reward_models.latent_student import LatentScorer, LatentStudent
from difalign.reward_models.latent_tower import LatentTower, LatentTowerConfig
from difalign.reward_models.networks import shared_copy
from difalign.reward_models.student_forms import LoraForm, ModulatedForm


@dataclass(frozen=True, slots=True)
class Shelf:
    """A bank, where it lies, and whom its students are made with."""

    bank: StudentBank
    folder: Path
    teacher: RewardModel
    reader: object | None  # what reads prompts for students without a text tower; None = the teacher


Loader = Callable[[Shelf], dict[float, RewardModel]]  # -> students by sigma


def check_taught_by(bank: StudentBank, teacher: RewardModel, folder: Path) -> None:
    """Refuse a teacher whose scores the students were not taught.

    Raises:
        ValueError: if its weights are others, or, where neither shows any, its name is another.
    """
    if bank.teacher_sha256 is None:
        if teacher.name != bank.teacher:
            raise ValueError(
                f"{folder}: its students were taught by {bank.teacher!r}, not by {teacher.name!r}; load that teacher"
            )
        return
    if not isinstance(teacher, NetworkReward):
        raise ValueError(f"teacher {teacher.name!r} has no `model` and `with_model`, so it has no students")
    if reward_sha256(teacher) != bank.teacher_sha256:
        raise ValueError(
            f"{folder}: its students were taught by {bank.teacher!r} with other weights or in another precision "
            f"than {teacher.name!r} has here; load that teacher as it was"
        )


def load_students(
    bank: StudentBank, folder: Path, *, teacher: RewardModel, reader: object | None
) -> dict[float, RewardModel]:
    """The students of a bank by sigma.

    Raises:
        ValueError: if the kind is unknown, a file is missing, damaged, or of another network, or prompts would be read
            by another reader than they were taught with.
    """
    if bank.kind not in LOADERS:
        raise ValueError(f"{folder}: holds students of kind {bank.kind!r}; this version knows: {', '.join(LOADERS)}")
    return LOADERS[bank.kind](Shelf(bank, folder, teacher, reader))


def _copies(form: Callable[[Shelf], StudentForm], shelf: Shelf) -> dict[float, RewardModel]:
    """Copies of the teacher's network, each with what its file holds; levels of one file share one."""
    teacher, made = shelf.teacher, form(shelf)
    assert isinstance(teacher, NetworkReward)
    files = {level.file: level for level in shelf.bank.levels}
    students = {name: _changed(teacher, shelf.folder, level, made) for name, level in files.items()}
    return {level.sigma: students[level.file] for level in shelf.bank.levels}


def _described(make: Callable[[Mapping[str, Any]], StudentForm], shelf: Shelf) -> StudentForm:
    try:
        return make(shelf.bank.network or {})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{shelf.folder}: its students are not described ({error}); restore bank.json") from error


def _latent(shelf: Shelf) -> dict[float, RewardModel]:
    """One student for all levels."""
    bank, reader = shelf.bank, _reader(shelf)
    if not bank.levels:
        return {}
    try:
        network = _made(bank.network or {})
    except ValueError as error:
        raise ValueError(f"{shelf.folder}: its network {error}; restore bank.json") from error
    state = _verified(shelf.folder, bank.levels[0])
    load_strictly(network, state, source=str(shelf.folder / bank.levels[0].file))
    student = LatentStudent(network, reader, name=f"latent student of {bank.teacher}")
    return {level.sigma: student for level in bank.levels}


def _made(described: Mapping[str, object]) -> LatentScorer:
    """A network with weights that are still to be loaded."""
    if described.get("make") == "tower":
        return LatentTower(LatentTowerConfig.from_json(described))
    return LatentNetwork(LatentNetworkConfig.from_json(described))


def _reader(shelf: Shelf) -> ReadsTexts:
    wanted = shelf.bank.reader
    if wanted is None:
        raise ValueError(f"{shelf.folder}: does not say who reads its prompts; restore bank.json")
    reader = shelf.teacher if shelf.reader is None else shelf.reader
    if not isinstance(reader, ReadsTexts):
        raise ValueError(
            f"{shelf.folder}: its prompts were read by {wanted.name!r}, and {type(reader).__name__} has no "
            f"`embed_texts`; give reader: {wanted.name} in the card, or as an argument"
        )
    if wanted.sha256 is not None and reward_sha256(reader) != wanted.sha256:
        raise ValueError(
            f"{shelf.folder}: its prompts were read by {wanted.name!r} with other weights or in another precision than "
            "the reader has here; load that reader as it was"
        )
    return reader


def _changed(teacher: NetworkReward, folder: Path, level: BankLevel, form: StudentForm) -> RewardModel:
    path = folder / level.file
    changed = _verified(folder, level)
    network = shared_copy(teacher.model)
    form.adapt(network)
    own = network.state_dict()
    wrong = [key for key in sorted(changed) if key not in own or own[key].shape != changed[key].shape]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong[:6])}: unknown to {teacher.name!r} or of another shape")
    fitting = {key: tensor.to(own[key]) for key, tensor in changed.items()}
    network.load_state_dict(fitting, strict=False, assign=True)
    return form.reward(teacher, network)


def _verified(folder: Path, level: BankLevel) -> dict[str, Tensor]:
    path = folder / level.file
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, though {folder} lists it; fetch the bank again")
    if file_sha256(path) != level.sha256:
        raise ValueError(f"{path}: its SHA-256 is not the one that the bank lists; it was damaged: fetch it again")
    return read_state_dict(path)


LOADERS: Mapping[str, Loader] = {
    "full": partial(_copies, lambda _: FullForm()),
    "lora": partial(_copies, partial(_described, LoraForm.from_json)),
    "modulated": partial(_copies, partial(_described, ModulatedForm.from_json)),
    "latent": _latent,
}
