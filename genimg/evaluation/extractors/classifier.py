"""Small classifiers, whose features evaluate images for which Inception is the wrong eye."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genimg.evaluation.extractors.base import (
    Extractor,
    check_sha256,
    describe_preparation,
    in_one_line,
    prepare,
    refuse_published_name,
    sha256_of,
)
from genimg.machine_local import MachineLocal


class SmallClassifier(nn.Module):
    """Four convolutions with batch norm and a linear layer.

    Args:
        channels: of the images.
        num_classes: K.
        widths: channels of the four convolutions; the last is the number of features D.
    """

    def __init__(self, *, channels: int, num_classes: int, widths: tuple[int, int, int, int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip((channels, *widths[:3]), widths, strict=True)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            if i < 3:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[3], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float [N, C, H, W] in [-1, 1] -> features [N, D] and logits [N, K]."""
        features = self.layers(images).mean(dim=(2, 3))
        return features, self.head(features)


def _is_shipped(value: Any) -> bool:
    """Whether a name is that of a file in the package, and no path that leads out of it."""
    return isinstance(value, str) and f"{value}.pt" in {file.name for file in shipped_weights("any").parent.iterdir()}


class Classifier(Extractor):
    """A SmallClassifier: one of those that come with genimg, or one that genimg-features made.

    Args:
        classifier: ``mnist``, ``shapes`` or ``cifar10``, or the path of a file that genimg-features wrote.
        sha256: of that file; None accepts any.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a classifier's, or its digest is another.
    """

    def __init__(self, *, classifier: Annotated[str, MachineLocal(published=_is_shipped)], sha256: str | None) -> None:
        path = Path(classifier).expanduser() if classifier.endswith(".pt") else shipped_weights(classifier)
        if not path.is_file():
            raise FileNotFoundError(f"evaluation.extractor.classifier={classifier}: {path} does not exist")
        found = sha256_of(path)
        check_sha256(path, found, sha256)
        try:
            record = torch.load(path, map_location="cpu", weights_only=True)
            self.image_size = int(record["image_size"])
            self.num_channels = int(record["channels"])
            class_names = tuple(map(str, record["class_names"]))
            network = SmallClassifier(channels=self.num_channels, num_classes=len(class_names))
            network.load_state_dict({key: value.float() for key, value in record["state_dict"].items()})
        except Exception as error:  # a file of another kind makes the unpickler raise nearly anything
            raise ValueError(f"{path} is not a classifier that genimg-features wrote ({in_one_line(error)})") from error
        refuse_published_name(path.stem)
        resize, channels = describe_preparation(self.num_channels, self.image_size)
        super().__init__(
            name=path.stem,
            network=network,
            weights_sha256=found,
            resize=resize,
            channels=channels,
            has_logits=True,
            class_names=class_names,
        )

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(prepare(images, self.num_channels, self.image_size))
        return features, logits


def shipped_weights(name: str) -> Path:
    """Where the package keeps the classifier ``name``."""
    return Path(str(resources.files("genimg.evaluation") / "weights" / f"{name}.pt"))
