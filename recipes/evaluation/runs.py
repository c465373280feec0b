"""What a training left in its run folder: settings, card, split, and scores of its held-out cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.datalist import Case, read_dataset, read_json
from ssmvision.recipes.segmentation.run_folder import CONFIG
from ssmvision.recipes.segmentation.scores import Evaluation
from ssmvision.recipes.segmentation.split import Split, read_split
from ssmvision.recipes.segmentation.weights import CARD

__all__ = ["SCORES", "Run", "open_run", "open_runs"]

VALIDATION, SCORES = "validation", "scores.json"


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        folder: its run folder.
        settings: of config.json.
        card: of model.json.
        split: ids of its cases.
    """

    folder: Path
    settings: dict[str, Any]
    card: dict[str, Any]
    split: Split

    @property
    def name(self) -> str:
        """The last two parts of its path, such as heart/fold0."""
        folder = self.folder.absolute()
        return f"{folder.parent.name}/{folder.name}"

    @property
    def digest(self) -> str:
        """The sha256 of the weights, as model.json has it."""
        return str(self.card.get("sha256"))

    @property
    def labels(self) -> dict[str, int]:
        """Name to id, background included."""
        return dict(self.card["labels"])

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.settings["trainer"]["seed"])

    @property
    def unseen(self) -> bool:
        """Whether the held-out cases were not trained on (they are with fold "all")."""
        return not set(self.split.validation) & set(self.split.training)

    @property
    def chosen_on_held_out(self) -> bool:
        """Whether the training took its best epoch, or stopped early, by the Dice of the held-out cases."""
        trainer = self.settings["trainer"]
        return trainer.get("save") == "best" or trainer.get("early_stop_epochs") is not None

    @property
    def network(self) -> str:
        """Name of the network and, where it has one, of its mixer."""
        architecture = self.card["architecture"]
        mixer = architecture.get("arguments", {}).get("mixer")
        return f"{architecture['name']} ({mixer})" if mixer else str(architecture["name"])

    @property
    def scores_path(self) -> Path:
        """Where the scores of the held-out cases are."""
        return self.folder / VALIDATION / SCORES

    def prediction(self, case: str) -> Path:
        """Where the prediction of a held-out case is."""
        return self.folder / VALIDATION / f"{case}.nii.gz"

    def held_out(self, data: Path | None = None) -> list[Case]:
        """The held-out cases with their files.

        Args:
            data: the dataset; None: where the training found it.

        Raises:
            UserError: nothing was held out, or the dataset or one of the cases is gone.
        """
        if not self.split.validation:
            raise UserError(f"{self.folder}: held out no case; train with data.fold or data.validation_fraction")
        root = Path(self.settings["data"]["root"]) if data is None else data
        if not root.exists():
            raise UserError(f"{root}: the dataset of {self.folder} is not there; pass --data with its present place")
        dataset = read_dataset(root)
        cases = {case.id: case for case in (*dataset.training, *dataset.validation)}
        gone = [name for name in self.split.validation if name not in cases]
        if gone:
            raise UserError(f"{dataset.path}: held-out case(s) {gone} of {self.folder} are gone; restore them")
        if dataset.labels != self.labels:
            raise UserError(
                f"{dataset.path}: labels are {dataset.labels}, {self.folder} was trained on {self.labels}; "
                "pass --data with the dataset of the training"
            )
        return [cases[name] for name in self.split.validation]

    def evaluation(self) -> Evaluation:
        """Scores of the held-out cases.

        Raises:
            UserError: `ssmvision validate` was not run, or on other weights.
        """
        content = read_json(self.scores_path, f"run `ssmvision validate {self.folder}` first")
        if content.get("weights_sha256") != self.digest:
            raise UserError(
                f"{self.scores_path}: the scores of other weights than {self.folder} has now; "
                f"run `ssmvision validate {self.folder} --overwrite`"
            )
        try:
            return Evaluation.from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.scores_path}: unusable entry ({type(error).__name__}: {error}); "
                f"run `ssmvision validate {self.folder} --overwrite`"
            ) from None


def open_run(folder: Path) -> Run:
    """What a run folder says of its training; no weights are read.

    Raises:
        UserError: it is not the folder of a finished training.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a finished training")
    card = read_json(folder / CARD, "give the folder of a finished training")
    settings = read_json(folder / CONFIG, "give the folder of a training, as the training left it")
    run = Run(folder, settings, card, read_split(folder))
    try:
        _ = run.labels, run.seed, run.network, settings["data"]["root"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder}: {CARD} or {CONFIG} lacks an entry ({type(error).__name__}: {error}); restore them"
        ) from None
    return run


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Several runs that can be compared.

    Args:
        folders: run folders; one that holds run folders, such as fold0 to fold4, stands for them.

    Raises:
        UserError: see `open_run`; or none or one twice is given, or their labels differ.
    """
    if not folders:
        raise UserError("runs: no run folder given; give at least one")
    runs = [open_run(inner) for folder in folders for inner in _expand(folder)]
    seen: set[Path] = set()
    for run in runs:
        if run.folder.resolve() in seen:
            raise UserError(f"{run.folder}: given twice; give every run once")
        seen.add(run.folder.resolve())
        if run.labels != runs[0].labels:
            raise UserError(
                f"{run.folder}: labels are {run.labels}, those of {runs[0].folder} {runs[0].labels}; "
                "give runs on the same labels"
            )
    return runs


def _expand(folder: Path) -> list[Path]:
    if not folder.is_dir() or (folder / CARD).is_file():
        return [folder]
    return sorted(inner for inner in folder.iterdir() if (inner / CARD).is_file()) or [folder]
