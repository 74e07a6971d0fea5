"""Feature extractors: uint8 images -> features and class logits."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Extractor(ABC):
    """Maps images to features.

    Attributes:
        name: what metrics made with it are called after.
        weights_sha256: of the weights' file.
    """

    name: str
    weights_sha256: str

    @abstractmethod
    def metric_name(self, metric: str, count: str) -> str:
        """The name of a metric: ``fid`` or ``is``, of ``count`` images."""

    @abstractmethod
    def to(self, device: torch.device) -> Extractor:
        """Move the network."""

    @abstractmethod
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, C, H, W] -> features [N, D] and class logits [N, K]."""


class Inception(Extractor):
    """torch-fidelity's port of the 2015 TensorFlow Inception, the network FID and Inception Score are defined by.

    Images are resized to 299x299 as TensorFlow 1 did it; grey images are replicated to three channels.

    Args:
        weights: path of the weights' file; None looks in torch hub's cache and then downloads it.

    Raises:
        FileNotFoundError: if the weights cannot be had.
        ValueError: if the file is not a set of Inception weights.
    """

    def __init__(self, *, weights: str | None) -> None:
        path = _inception_path(weights)
        self.weights_sha256 = sha256_of(path)
        # Only with the published weights may a Fréchet distance be called FID.
        self.known = self.weights_sha256 == INCEPTION_SHA256
        self.name = "inception" if self.known else "inception_unknown"
        from torch_fidelity.utils import create_feature_extractor

        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity's own load would run pickled code
            self._network = create_feature_extractor(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=str(path),
                cuda=False,
                verbose=False,
            )
        except Exception as error:  # a file of another kind makes the unpickler raise nearly anything
            raise ValueError(f"evaluation.extractor.weights={path} does not hold the Inception weights ({error})") from error
        self._device = torch.device("cpu")

    def metric_name(self, metric: str, count: str) -> str:
        return f"{metric}{count}" if self.known else f"{'fd' if metric == 'fid' else metric}{count}_{self.name}"

    def to(self, device: torch.device) -> Extractor:
        self._network.to(device)
        self._device = device
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        features, logits = self._network(images[:, :3].to(self._device))
        return features, logits


class SmallClassifier(nn.Module):
    """Four convolutions with batch norm and a linear layer: features for small images where Inception is the wrong eye.

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


class ShippedClassifier(Extractor):
    """One of the small classifiers in genimg/evaluation/weights, trained by scripts/train_classifier.py.

    Images are resized to the size it was trained at (bilinear, anti-aliased); channels are matched by replication or
    by luma. Metrics made with it carry its name.

    Args:
        classifier: ``mnist``, ``shapes`` or another file's stem, or the path of a file that the script wrote.
        sha256: of that file; None accepts any.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a classifier's, or its digest is another.
    """

    def __init__(self, *, classifier: str, sha256: str | None) -> None:
        path = Path(classifier) if classifier.endswith(".pt") else shipped_weights(classifier)
        if not path.is_file():
            raise FileNotFoundError(f"evaluation.extractor.classifier={classifier}: {path} does not exist")
        self.weights_sha256 = sha256_of(path)
        if sha256 is not None and sha256 != self.weights_sha256:
            raise ValueError(
                f"{path} has sha256 {self.weights_sha256}, but evaluation.extractor.sha256={sha256}: reinstall genimg, "
                "or set it to null to accept other weights"
            )
        try:
            record = torch.load(path, map_location="cpu", weights_only=True)
            self._image_size = int(record["image_size"])
            self._channels = int(record["channels"])
            self._network = SmallClassifier(channels=self._channels, num_classes=len(record["class_names"]))
            self._network.load_state_dict({key: value.float() for key, value in record["state_dict"].items()})
        except Exception as error:  # a file of another kind makes the unpickler raise nearly anything
            raise ValueError(f"{path} is not a classifier of scripts/train_classifier.py ({error})") from error
        self._network.eval().requires_grad_(False)
        self.name = path.stem
        self._device = torch.device("cpu")

    def metric_name(self, metric: str, count: str) -> str:
        return f"{'fd' if metric == 'fid' else metric}{count}_{self.name}"

    def to(self, device: torch.device) -> Extractor:
        self._network.to(device)
        self._device = device
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._network(prepare(images.to(self._device), self._channels, self._image_size))
        return features, logits


def prepare(images: Tensor, channels: int, image_size: int) -> Tensor:
    """uint8 [N, C, H, W] to the float input in [-1, 1] of a SmallClassifier."""
    values = images.float() / 127.5 - 1.0
    if values.shape[1] == 4:
        values = values[:, :3]
    if values.shape[1] == 1 and channels == 3:
        values = values.expand(-1, 3, -1, -1)
    elif values.shape[1] == 3 and channels == 1:
        luma = torch.tensor([0.299, 0.587, 0.114], device=values.device)  # ITU-R BT.601
        values = (values * luma[:, None, None]).sum(dim=1, keepdim=True)
    if values.shape[2:] != (image_size, image_size):
        values = F.interpolate(values, size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False)
    return values


def shipped_weights(name: str) -> Path:
    """Where the package keeps the classifier ``name``."""
    return Path(str(resources.files("genimg.evaluation") / "weights" / f"{name}.pt"))


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inception_path(weights: str | None) -> Path:
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"evaluation.extractor.weights={weights} does not exist")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if path.is_file():
        return path
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        os.makedirs(path.parent, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=INCEPTION_SHA256)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the Inception weights, which FID and Inception Score need, are not at {path} and could not be downloaded "
            f"({error}): put the file {INCEPTION_FILE} (torch-fidelity's release, 96 MB) there, or name another place with "
            "evaluation.extractor.weights=PATH, or train without evaluation: evaluation=none"
        ) from error
    return path


def describe(extractor: Extractor) -> dict[str, Any]:
    """Provenance of every value made with it."""
    return {"extractor": extractor.name, "weights_sha256": extractor.weights_sha256}
