"""Small classifiers, as feature extractors for images that Inception suits poorly."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.errors import DataError
from genimg.evaluation.extractors.base import (
    Extractor,
    check_sha256,
    describe_preparation,
    in_one_line,
    prepare,
    refuse_published_name,
)
from genimg.utils.files import sha256_of
from genimg.utils.machine_local import MachineLocal

FORMAT = 2
"""Format of files from genimg-features. Format 1 had features pooled over the whole image, from training on clean images."""

_GRID = 2  # cells per side in which the last convolution is averaged, so the features contain positions


class SmallClassifier(nn.Module):
    """Four convolutions with batch norm, a projection to features, and a linear classifier.

    The features are projected from the means of the last convolution over a 2x2 grid and the means of the other three, so they
    contain position and texture in addition to content. The features are centred and divided by a common scale, so that over
    real images their mean is 0 and their mean square about 1, as the polynomial kernel of the kernel distance assumes.

    Args:
        channels: Number of image channels, 1 or 3.
        num_classes: Number of classes K.
        widths: Numbers of channels of the four convolutions.
        num_features: Number of features D.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        widths: tuple[int, int, int, int] = (32, 64, 96, 128),
        num_features: int = 128,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
            for inputs, outputs in zip((channels, *widths[:3]), widths, strict=True)
        )
        self.projection = nn.Linear(sum(widths[:3]) + _GRID**2 * widths[3], num_features)
        self.head = nn.Linear(num_features, num_classes)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(()))

    def project(self, images: Tensor) -> Tensor:
        """Return features [N, D] of float images [N, C, H, W] in [-1, 1], before centring and scaling."""
        pooled = []
        for block in self.blocks[:-1]:
            images = block(images)
            pooled.append(images.mean(dim=(2, 3)))
            images = F.max_pool2d(images, 2)
        last = F.adaptive_avg_pool2d(self.blocks[-1](images), _GRID).flatten(1)
        return self.projection(torch.cat([*pooled, last], dim=1))

    def classify(self, projected: Tensor) -> Tensor:
        """Return logits [N, K] of the features from ``project``."""
        return self.head(torch.relu(projected))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and logits [N, K] of float images [N, C, H, W] in [-1, 1]."""
        projected = self.project(images)
        return (projected - self.mean) / self.scale, self.classify(projected)


def _is_shipped(value: Any) -> bool:
    """Return whether a value is the name of a classifier in the package, and not a path."""
    return isinstance(value, str) and f"{value}.pt" in {file.name for file in shipped_weights("any").parent.iterdir()}


class Classifier(Extractor):
    """A SmallClassifier that comes with genimg or was trained by genimg-features.

    Args:
        classifier: ``mnist_v2``, ``shapes_v2`` or ``cifar10_v2``, or the path of a file from genimg-features.
        sha256: Digest of that file; None accepts any.

    Raises:
        DataError: If the file does not exist, is not from genimg-features, or has another digest.
        ConfigError: If it has the name of a published network.
    """

    def __init__(self, *, classifier: Annotated[str, MachineLocal(published=_is_shipped)], sha256: str | None) -> None:
        path = Path(classifier).expanduser() if classifier.endswith(".pt") else shipped_weights(classifier)
        if not path.is_file():
            raise DataError(f"classifier={classifier} is neither shipped with genimg nor a file: {path} does not exist")
        found = sha256_of(path)
        check_sha256(path, found, sha256)
        try:
            record = torch.load(path, map_location="cpu", weights_only=True)
            if record.get("format", 1) != FORMAT:
                raise ValueError(
                    f"it has format {record.get('format', 1)}, and this version reads format {FORMAT}: make it again with "
                    "genimg-features, and do not compare values of the two"
                )
            self.image_size = int(record["image_size"])
            self.num_channels = int(record["channels"])
            class_names = tuple(map(str, record["class_names"]))
            network = SmallClassifier(channels=self.num_channels, num_classes=len(class_names))
            network.load_state_dict({key: value.float() for key, value in record["state_dict"].items()})
        except Exception as error:  # the unpickler can raise almost anything for other kinds of file
            raise DataError(
                f"classifier={classifier} is not a file that genimg-features wrote ({in_one_line(error)})"
            ) from error
        refuse_published_name(path.stem, f"classifier={classifier}")
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
    """Return the path of the classifier ``name`` in the package."""
    return Path(str(resources.files("genimg.evaluation") / "weights" / f"{name}.pt"))
