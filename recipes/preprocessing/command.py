"""`ssmvision preprocess`: fills a cache and says what it holds; trainings use the same to fill theirs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ssmvision.recipes.preprocessing.cache import Cached, fill_cache
from ssmvision.recipes.preprocessing.config import PreprocessConfig
from ssmvision.recipes.preprocessing.decide import decide_preprocessing
from ssmvision.recipes.segmentation.config import DataConfig, TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset, read_dataset
from ssmvision.recipes.segmentation.planned import apply_plan
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.ranks import rank
from ssmvision.recipes.segmentation.writing import check_folder

__all__ = ["prepare_cases", "run"]


def run(config: PreprocessConfig) -> dict[str, Cached]:
    """Prepares every case of a dataset; returns the entries by case id.

    Raises:
        UserError: settings or plan are unusable, or some cases failed (the others are kept).
    """
    check_folder(config.out)
    data = DataConfig(config.data, cache_dir=config.out)
    training = apply_plan(TrainConfig(data, config.out, plan=config.plan, configuration=config.configuration))
    dataset = read_dataset(config.data)
    how, _ = decide_preprocessing(training, dataset)
    return prepare_cases(config.out, how, dataset, config.workers)


def prepare_cases(folder: Path, how: Preprocessing, dataset: Dataset, workers: int = 0) -> dict[str, Cached]:
    """Fills a cache with the cases of a dataset, shows how far it is, and says where it is and how big.

    Raises:
        UserError: see `cache.fill_cache`.
    """
    console = Console(stderr=True, quiet=rank() > 0)  # of several processes of a training, the first one tells
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("preparing cases", total=len({*dataset.training, *dataset.validation}))
        found = fill_cache(folder, how, dataset, workers, lambda case: progress.advance(bar))
    made, size = sum(c.made for c in found.values()), sum(c.size for c in found.values())
    raw = sum(c.raw_size for c in found.values())
    console.print(
        f"cache     {folder}: {len(found)} case(s), {made} prepared now, {size / 1e6:.1f} MB on disk "
        f"({raw / 1e6:.1f} MB uncompressed)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return found
