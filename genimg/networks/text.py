"""Captions as conditions: an encoder trained with its network, and CLIP's frozen encoder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.errors import ConfigError, first_line
from genimg.networks.conditioning import ConditionEncoder
from genimg.utils.machine_local import LocalPath
from genimg.utils.numbers import require_least
from genimg.utils.rng import Stream, keys_of

_NUM_HASHES = 2
_PRIME = 2**31 - 1
_KERNEL_SIZE = 5  # words
_MOST_KNOWN = 100_000  # cached captions, which take 200 MB with CLIP


class CaptionEncoder(ConditionEncoder):
    """Encoder of captions as UTF-8 bytes padded with zeros, from uint8 [N, L] with any L to [N, E].

    Args:
        dim: Length E of the vector.
        max_length: Maximum number of bytes read of a caption.
    """

    key = "caption"

    def __init__(self, *, dim: int, max_length: int) -> None:
        super().__init__()
        require_least(1, dim=dim, max_length=max_length)
        self.dim = dim
        self.max_length = max_length

    def blank(self, count: int) -> Tensor:
        return torch.zeros(count, self.max_length, dtype=torch.uint8)

    def fitted(self, condition: Tensor) -> Tensor:
        """Cut or pad captions [N, L] to [N, max_length]."""
        kept = condition[:, : self.max_length]
        return F.pad(kept, (0, self.max_length - kept.shape[1]))


class TextEncoder(CaptionEncoder):
    """Embeddings of words and their positions, convolutions over neighbouring words, and the mean over words.

    Only a linear layer and a norm follow the mean, so a phrase contributes similarly to the vector in any caption. Combinations
    of words that never occur in training therefore work nearly as well as those that do.

    The vector has mean 0 and standard deviation 1, regardless of how the surrounding network initialises its layers.

    Args:
        dim: Length E of the vector.
        width: Length of a word's embedding.
        max_length: Maximum number of bytes read of a caption.
        max_words: Maximum number of words read of a caption.
        vocabulary: Number of embeddings, which words share by hashing.
        num_layers: Number of convolutions, each over five words.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, *, dim: int, width: int, max_length: int, max_words: int, vocabulary: int, num_layers: int) -> None:
        super().__init__(dim=dim, max_length=max_length)
        require_least(1, width=width, max_words=max_words, vocabulary=vocabulary, num_layers=num_layers)
        self.words = HashedWords(max_length=max_length, max_words=max_words, vocabulary=vocabulary)
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.place = nn.Parameter(0.5 * torch.randn(max_words, width))
        self.layers = nn.ModuleList(_WordConvolution(width) for _ in range(num_layers))
        self.output = nn.Sequential(nn.Linear(width, dim), nn.LayerNorm(dim))

    def forward(self, condition: Tensor) -> Tensor:
        numbers, present = self.words(self.fitted(condition))
        mask = present[:, :, None].float()  # [N, T, 1]
        features = self.norm(self.embedding(numbers).sum(dim=2)) + self.place  # [N, T, W]
        for layer in self.layers:
            features = layer(features, mask)
        mean = (features * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)  # [N, W]
        return self.output(mean)


class HashedWords(nn.Module):
    """Words of captions as numbers below ``vocabulary``, without a word list and without synchronising with the device.

    Words are separated by bytes that are not letters. ASCII letters in either case, digits and all bytes of other alphabets
    count as letters. Each word has two numbers, so two words that share one number nearly always differ in the other
    (Svenstrup et al. 2017, "Hash embeddings for efficient word representations"). A number is the sum, over a word's bytes, of
    a random integer for the byte times a random integer for its position in the word, modulo a prime and the vocabulary.

    Args:
        max_length: Maximum number of bytes L.
        max_words: Maximum number of words T; later words are omitted.
        vocabulary: Number of embeddings V.
    """

    byte_factors: Tensor
    place_factors: Tensor

    def __init__(self, *, max_length: int, max_words: int, vocabulary: int) -> None:
        super().__init__()
        self.max_words = max_words
        self.vocabulary = vocabulary
        # 24 bits, so the sum of 32,768 products fits into an int64.
        self.register_buffer("byte_factors", _random_integers(0, 256), persistent=False)  # [2, 256]
        self.register_buffer("place_factors", _random_integers(1, max_length), persistent=False)  # [2, L]

    def forward(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Map captions uint8 [N, L] to numbers int64 [N, T, 2] and a mask of existing words, bool [N, T]."""
        code = captions.long()
        code = code + 32 * ((code >= ord("A")) & (code <= ord("Z")))
        letter = ((code >= ord("a")) & (code <= ord("z"))) | ((code >= ord("0")) & (code <= ord("9"))) | (code >= 128)
        first = letter & ~F.pad(letter[:, :-1], (1, 0))
        word = first.long().cumsum(dim=1) - 1
        column = torch.arange(captions.shape[1], device=captions.device)
        place = column - _running_maximum(torch.where(first, column, 0))  # position in its word
        word = torch.where(letter & (word < self.max_words), word, self.max_words)  # an extra slot for omitted bytes
        share = self.byte_factors[:, code] * self.place_factors[:, place]  # [2, N, L]
        empty = share.new_zeros(_NUM_HASHES, captions.shape[0], self.max_words + 1)
        hashed = empty.scatter_add(2, word.expand(_NUM_HASHES, -1, -1), share)[:, :, : self.max_words]
        present = torch.arange(self.max_words, device=captions.device) < first.sum(dim=1, keepdim=True)
        return (hashed % _PRIME % self.vocabulary).permute(1, 2, 0), present


class _WordConvolution(nn.Module):
    """x + gelu(conv(norm(x))), with 0 in place of missing words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, _KERNEL_SIZE, padding=_KERNEL_SIZE // 2)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Map features [N, T, W] and the mask [N, T, 1] to [N, T, W]."""
        words = (self.norm(features) * mask).transpose(1, 2)  # [N, W, T]
        return features + F.gelu(self.convolution(words)).transpose(1, 2)


class ClipText(CaptionEncoder):
    """A frozen CLIP text tower (Radford et al. 2021), whose pooled output passes through a trained linear layer and norm.

    The tower is not part of the network: it is not initialised, trained, averaged or saved with it. All encoders with the same
    path share one tower. Each caption is encoded once and its vector cached on the CPU, which synchronises with the device.

    Args:
        path: Directory written by ``save_pretrained`` of the package transformers: config.json, model.safetensors and the
            tokenizer's files, of the text tower or of a whole CLIP.
        dim: Length E of the vector.
        max_length: Maximum number of bytes that are read from a caption; the tower itself reads 77 tokens.

    Raises:
        ConfigError: If the directory does not exist, holds something else, or the package is not installed.
    """

    def __init__(self, *, path: LocalPath, dim: int, max_length: int) -> None:
        super().__init__(dim=dim, max_length=max_length)
        self.path = str(Path(path).expanduser().absolute())
        self.output = nn.Sequential(nn.Linear(_tower(self.path).width, dim), nn.LayerNorm(dim))

    def forward(self, condition: Tensor) -> Tensor:
        return self.output(_tower(self.path)(condition[:, : self.max_length]))


class _Tower:
    """Tokenizer and text tower of one directory, with cached caption vectors on the CPU."""

    def __init__(self, path: str) -> None:
        if not Path(path).is_dir():
            raise ConfigError(f"path={path} does not exist", "name a directory with CLIP's files")
        with torch.device("cpu"):
            transformers = _import_transformers(path)
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            with torch.device("cpu"):  # all encoders share it, even if built on the device meta
                self.model, report = transformers.CLIPTextModel.from_pretrained(
                    path, local_files_only=True, use_safetensors=True, output_loading_info=True
                )
        except Exception as error:  # other directories can raise nearly any error
            raise ConfigError(
                f"path={path} holds no CLIP text model ({first_line(error)})",
                "it must have config.json, model.safetensors and the tokenizer's files",
            ) from error
        if report["missing_keys"]:  # they would stay random
            raise ConfigError(
                f"path={path} holds no CLIP text model: it lacks {sorted(report['missing_keys'])[0]} and "
                f"{len(report['missing_keys']) - 1} other weights"
            )
        self.model.eval().requires_grad_(False)
        self.width: int = self.model.config.hidden_size
        self.known: dict[bytes, Tensor] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, captions: Tensor) -> Tensor:
        """Map captions uint8 [N, L] to vectors float32 [N, hidden_size] on the same device."""
        contents = [row.tobytes().rstrip(b"\0") for row in captions.cpu().numpy()]
        unknown = [content for content in dict.fromkeys(contents) if content not in self.known]
        if len(self.known) + len(unknown) > _MOST_KNOWN:
            self.known.clear()
            unknown = list(dict.fromkeys(contents))
        if unknown:
            self.known |= zip(unknown, self._encode(unknown, captions.device), strict=True)
        return torch.stack([self.known[content] for content in contents]).to(captions.device)

    @torch.no_grad()
    def _encode(self, contents: list[bytes], device: torch.device) -> Tensor:
        texts = [content.decode("utf-8", "ignore") for content in contents]  # the last character may be cut
        most = self.model.config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
        with torch.autocast(device.type, enabled=False):
            output = self.model.to(device)(tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device))
        return output.pooler_output.float().cpu()


@functools.cache
def _tower(path: str) -> _Tower:
    return _Tower(path)


def _import_transformers(path: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"path={path} cannot be read without the package transformers ({error})",
            "pip install 'genimg[text]', or choose a text encoder that is trained with the model",
        ) from error
    return transformers


def _running_maximum(numbers: Tensor) -> Tensor:
    """Return the running maximum of non-negative numbers [N, L]."""
    if not torch.compiler.is_exporting():
        return numbers.cummax(dim=1).values
    later = torch.ones(numbers.shape[1], numbers.shape[1], dtype=torch.bool, device=numbers.device).triu(1)
    return numbers[:, None, :].masked_fill(later, 0).amax(dim=2)  # the same, for export formats without cummax


def _random_integers(table: int, count: int) -> Tensor:
    """Return fixed random integers of 24 bits, int64 [2, count], which differ between values of ``table``."""
    columns = np.arange(count)
    rows = [keys_of(table, Stream.WORD_HASH, number, columns) >> 40 for number in range(_NUM_HASHES)]
    return torch.stack([torch.from_numpy(row.astype("int64")) for row in rows])
