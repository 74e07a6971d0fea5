#!/usr/bin/env python3
"""Measure how often images that genimg-sample generated from captions of shapes have the requested colour and shape.

    genimg-sample ckpt=RUN 'text=[a small red circle,a large red circle]' num_images=500 output=drawn
    python scripts/caption_accuracy.py drawn

The classifier that comes with genimg predicts the colour and the shape of each image. It was not trained on generated images.
Each caption describes one object.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from genimg.evaluation.extractors.classifier import Classifier


def read(folder: Path) -> tuple[list[str], list[Path]]:
    """Return the caption and the file of each image."""
    listing = folder / "metadata.jsonl"
    if not listing.is_file():
        raise SystemExit(f"{listing} does not exist: give a folder that genimg-sample wrote for text=...")
    entries = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    if not entries or "text" not in entries[0]:
        raise SystemExit(f"{listing} has no captions: give a folder that genimg-sample wrote for text=...")
    return [entry["text"] for entry in entries], [folder / entry["file_name"] for entry in entries]


@torch.no_grad()
def seen(files: Sequence[Path]) -> list[str]:
    """Return the classifier's prediction for each image, such as "red circle"."""
    classifier = Classifier(classifier="shapes_v2", sha256=None)
    found: list[str] = []
    for start in range(0, len(files), 500):
        arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files[start : start + 500]]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        _, logits = classifier.extract(images)
        found += [classifier.class_names[number] for number in logits.argmax(1).tolist()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder written by genimg-sample")
    captions, files = read(parser.parse_args().folder)
    asked = [" ".join(caption.split()[-2:]) for caption in captions]
    results = list(zip(captions, asked, seen(files), strict=True))
    print("| caption | images | colour and shape | colour | shape | most frequent other |\n|---|---|---|---|---|---|")
    for caption in [*dict.fromkeys(captions), "all"]:
        of_caption = [(want, found) for each, want, found in results if caption in (each, "all")]
        pairs = [(want.split(), found.split()) for want, found in of_caption]
        both, color, shape = (
            np.mean([want == found for want, found in of_caption]),
            np.mean([want[0] == found[0] for want, found in pairs]),
            np.mean([want[1] == found[1] for want, found in pairs]),
        )
        others = Counter(found for want, found in of_caption if want != found).most_common(1)
        other = f"{others[0][0]} ({others[0][1]})" if others else ""
        print(f"| {caption} | {len(of_caption)} | {both:.1%} | {color:.1%} | {shape:.1%} | {other} |")


if __name__ == "__main__":
    main()
