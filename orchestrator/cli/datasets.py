"""Commands about datasets: `data fetch`, `data encode`, `data list`."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.refusals import refusing


@click.group()
def data() -> None:
    """Datasets on this machine.

    \b
    ditlaw data list
    ditlaw data fetch fashion-mnist
    """


@data.command("fetch")
@click.argument("dataset")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Folder that holds the files already.")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where to put them; default: data/<dataset>.")
def data_fetch(dataset: str, source: Path | None, folder: Path | None) -> None:
    """Put DATASET's files in place, checksums verified. The only command that downloads.

    \b
    ditlaw data fetch fashion-mnist
    ditlaw data fetch fashion-mnist --from /media/usb --to /scratch/fashion-mnist
    """
    from orchestrator.spec.datasets import dataset_named, default_folder
    from orchestrator.training.data.fetch import fetch_fashion_mnist

    with refusing():
        known = dataset_named(dataset)
        if known.form != "idx":
            made = "is made as it is needed" if known.train_images is None else "was encoded here"
            click.echo(f"{dataset} {made}: there is nothing to fetch")
            return
        click.echo(f"{dataset} is in {fetch_fashion_mnist(folder or default_folder(dataset), source)}")


@data.command("encode")
@click.argument("source")
@click.option("--name", required=True, help="Of the dataset, as sweeps will know it.")
@click.option(
    "--vae",
    type=click.Path(path_type=Path),
    help="Folder of an autoencoder: one of `ditlaw data vae`, or a diffusers AutoencoderKL, which sees frames alone. "
    "Clips without it stay pixels. Nothing is fetched.",
)
@click.option(
    "--size", default=256, show_default=True, type=click.IntRange(min=8), help="Side of the pictures, pixels."
)
@click.option("--frames", default=16, show_default=True, type=click.IntRange(min=1), help="Of a clip of video files.")
@click.option("--every", default=1, show_default=True, type=click.IntRange(min=1), help="So-manieth frame is taken.")
@click.option(
    "--clips", "count", default=2000, show_default=True, type=click.IntRange(min=1), help="Of a dataset of clips."
)
@click.option("--batch", default=32, show_default=True, type=click.IntRange(min=1), help="Samples at a time.")
@click.option(
    "--validation-every",
    default=20,
    show_default=True,
    type=click.IntRange(min=2),
    help="Every so-manieth picture or video file, with all its clips, is for validation.",
)
def data_encode(
    source: str, name: str, vae: Path | None, size: int, frames: int, every: int, count: int, batch: int,
    validation_every: int,
) -> None:  # fmt: skip
    """Turn pictures or clips into latents: SOURCE is a folder of class folders of pictures or of video files,
    WebDataset tars, Parquet files, or the name of a dataset of moving figures.

    They go to $DITLAW_DATA/NAME, or data/NAME here, where sweeps look for them.

    \b
    ditlaw data encode photos --vae sd-vae --name photos-256
    ditlaw data encode videos --size 32 --frames 8 --name small-videos
    ditlaw data encode moving-32 --vae vaes/moving --name moving-latents
    """
    import torch

    from orchestrator.spec.datasets import DATASETS, dataset_named, default_folder
    from orchestrator.training.data.clips import clips, has_videos, rendered_clips
    from orchestrator.training.data.encode import as_they_are, encode, encoder_in, pictures_of
    from orchestrator.training.data.examples import examples

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with refusing():
        if name in DATASETS or "/" in name:
            raise ValueError(f"got the name {name!r}; wanted one that no dataset has, without a slash")
        place = Path(source)
        if not place.exists():
            samples = rendered_clips(dataset_named(source), count)
        elif has_videos(place):
            samples = clips(place, frames=frames, every=every, size=size)
        elif vae is None:
            raise ValueError("pictures are encoded by an autoencoder; wanted its folder: --vae FOLDER")
        else:
            samples = pictures_of(examples(place), size)
        encoder = as_they_are if vae is None else encoder_in(vae, device)
        made = encode(
            samples, encoder, default_folder(name), batch=batch, validation_every=validation_every,
            space="pixels" if vae is None else "latents",
        )  # fmt: skip
    click.echo(f"{name} is in {made}")


@data.command("vae")
@click.argument("dataset")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder to write it to.")
@click.option("--steps", default=2000, show_default=True, type=click.IntRange(min=10), help="Of training.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(min=1), help="Clips a step.")
@click.option(
    "--width", default=16, show_default=True, type=click.IntRange(min=1), help="Channels of the finest level."
)
@click.option("--latent-channels", default=4, show_default=True, type=click.IntRange(min=1), help="Of latents.")
@click.option("--per-frame", is_flag=True, help="Encode every frame alone, for comparison.")
@click.option("--seed", default=0, show_default=True, help="Of the first weights, the noise and the order of clips.")
def data_vae(
    dataset: str, out: Path, steps: int, batch: int, width: int, latent_channels: int, per_frame: bool, seed: int
) -> None:
    """Train the causal autoencoder of clips on DATASET: 8 times smaller in space and 4 times in time.

    \b
    ditlaw data vae moving-32 --steps 2000 -o vaes/moving
    """
    import torch

    from models.causal_vae import CausalVAEConfig, coding_flops
    from orchestrator.spec.datasets import dataset_named, default_folder
    from orchestrator.training.data.autoencoding import train_vae
    from orchestrator.training.data.source import opened, whole

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with refusing():
        known = dataset_named(dataset)
        if known.samples != "clips":
            raise ValueError(f"{dataset} holds {known.samples}; wanted a dataset of clips, such as moving-32")
        config = CausalVAEConfig(
            channels=known.channels, latent_channels=latent_channels, width=width, temporal=1 if per_frame else 4
        )
        data = whole(opened(known, default_folder(dataset), device))
        for now in train_vae(data, config, out, steps=steps, batch=batch, seed=seed):
            click.echo(f"step {now.step}: root mean square error {now.error:.4f}, KL {now.kl:.3f} a latent number")
    assert known.frames is not None, "clips have frames"
    flops = coding_flops(config, known.frames, known.image_size)
    click.echo(
        f"{out}: encoding a clip takes {flops.encode:.3g} FLOPs, decoding it {flops.decode:.3g}; this training "
        f"{3 * sum(flops) * batch * steps:.3g}"
    )


@data.command("list")
def data_list() -> None:
    """List the datasets ditlaw knows and which of them are here."""
    from orchestrator.spec.datasets import DATASETS, dataset_named, default_folder, encoded_names
    from orchestrator.training.data.fetch import find

    for name in (*DATASETS, *encoded_names()):
        with refusing():
            dataset = dataset_named(name)
        frames = "" if dataset.frames is None else f"{dataset.frames} frames of "
        shape = f"{frames}{dataset.image_size} x {dataset.image_size} x {dataset.channels}"
        shape += f", {dataset.num_classes} classes"
        kind = "images" if dataset.frames is None else "clips"
        if dataset.train_images is None:
            click.echo(f"{name}  {kind} without end of {shape}  needs no files")
            continue
        remedy = f"ditlaw data fetch {name}" if dataset.form == "idx" else "encode it again, under another name"
        where = default_folder(name)
        missing = ", ".join(file.name for file in find(name, where))
        here = f"not here ({missing}); {remedy}" if missing else f"in {where}"
        click.echo(f"{name}  {dataset.train_images:,} {kind} of {shape}  {here}")


@data.command("captions")
@click.argument("dataset")
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where it goes; default: data/<dataset>.")
def data_captions(dataset: str, embeddings: Path, folder: Path | None) -> None:
    """Make a shard of EMBEDDINGS of DATASET's captions, one a class, and print what a spec says of it.

    EMBEDDINGS is a safetensors file with `sequence` [classes, tokens, width] and `pooled` [classes, size], made by any
    text encoder.

    \b
    ditlaw data captions fashion-mnist t5-small.safetensors
    """
    from orchestrator.spec.datasets import dataset_named, default_folder
    from orchestrator.training.data.captions import make_shard

    with refusing():
        click.echo(make_shard(dataset_named(dataset), embeddings, folder or default_folder(dataset)))


@data.command("codebook")
@click.argument("dataset")
@click.option("--patch", type=click.IntRange(min=1), required=True, help="Side of a patch, pixels.")
@click.option("--codes", type=click.IntRange(min=2), default=512, show_default=True, help="Patches of the codebook.")
@click.option("--images", type=click.IntRange(min=1), default=4000, show_default=True, help="Images it is fitted to.")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where it goes; default: data/<dataset>.")
def data_codebook(dataset: str, patch: int, codes: int, images: int, folder: Path | None) -> None:
    """Fit a codebook of patches to DATASET, the tokens of the masked image model, by k-means.

    \b
    ditlaw data codebook fashion-mnist --patch 4
    """
    from orchestrator.spec.datasets import dataset_named, default_folder
    from orchestrator.training.data.codebooks import make_codebook

    with refusing():
        place = default_folder(dataset)
        path, sha256, error = make_codebook(dataset_named(dataset), place, folder or place, patch, codes, images)
        click.echo(f"{path}: root mean square error {error:.4f} of numbers in [-1, 1]")
        click.echo(f"models: {{family: masked, patch: {patch}, codes: {codes}, codebook_sha256: {sha256}}}")
