"""Commands about datasets: `data fetch`, `data list`."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.refusals import refusing


@click.group()
def data() -> None:
    """Datasets on this machine."""


@data.command("fetch")
@click.argument("dataset")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Folder that holds the files already.")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where to put them; default: data/<dataset>.")
def data_fetch(dataset: str, source: Path | None, folder: Path | None) -> None:
    """Put DATASET's files in place, checksums verified. The only command that downloads."""
    from orchestrator.training.data.fetch import dataset_named, default_folder, fetch_fashion_mnist

    with refusing():
        if not dataset_named(dataset).files:
            click.echo(f"{dataset} is made as it is needed: there is nothing to fetch")
            return
        click.echo(f"{dataset} is in {fetch_fashion_mnist(folder or default_folder(dataset), source)}")


@data.command("list")
def data_list() -> None:
    """List the datasets ditlaw knows and which of them are here."""
    from orchestrator.spec.datasets import DATASETS
    from orchestrator.training.data.fetch import default_folder, find

    for name, dataset in DATASETS.items():
        shape = f"{dataset.image_size} x {dataset.image_size} x {dataset.channels}, {dataset.num_classes} classes"
        if dataset.train_images is None:
            click.echo(f"{name}  images without end of {shape}  needs no files")
            continue
        where = default_folder(name)
        here = f"in {where}" if not find(name, where) else f"not here; ditlaw data fetch {name}"
        click.echo(f"{name}  {dataset.train_images:,} images of {shape}  {here}")
