"""Text embeddings of a dataset's captions, made beforehand by any encoder, as a shard that a spec can name."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from models.text import write_shard
from orchestrator.spec.datasets import Dataset


def make_shard(dataset: Dataset, embeddings: Path, folder: Path) -> str:
    """Put embeddings into the dataset's folder as `captions-<name>.safetensors`; returns the `text` of a spec.

    Raises:
        ValueError: the file has no `sequence` [classes, tokens, width] and `pooled` [classes, size].
    """
    try:
        tensors = load(embeddings.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{embeddings} is not a safetensors file: {error}") from error
    sequence, pooled = tensors.get("sequence"), tensors.get("pooled")
    classes = dataset.num_classes
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    wanted = f"sequence [{classes}, tokens, width] and pooled [{classes}, size]: one caption a class of {dataset.name}"
    if sequence is None or pooled is None or sequence.dim() != 3 or pooled.dim() != 2:
        raise ValueError(f"{embeddings} holds {shapes}; wanted {wanted}")
    if len(sequence) != classes or len(pooled) != classes:
        raise ValueError(f"{embeddings} holds {shapes}; wanted {wanted}")
    folder.mkdir(parents=True, exist_ok=True)
    shard = write_shard(folder / f"captions-{embeddings.stem}.safetensors", sequence, pooled, dataset.class_names)
    return (
        f"text: {{name: shard, file: {shard.file}, sha256: {shard.sha256}, tokens: {shard.tokens}, "
        f"width: {shard.width}, pooled: {shard.pooled}}}"
    )
