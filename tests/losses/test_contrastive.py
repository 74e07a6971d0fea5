import math

import pytest
import torch
import torch.nn.functional as F

from genimg.losses.contrastive import patch_nce


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_hand(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> list[float]:
    """Equation 3 word by word, one query after another."""
    losses = []
    for q, k in zip(queries, keys, strict=True):
        cosines = [[(a @ b / (a.norm() * b.norm())).item() / temperature for b in k] for a in q]
        logits = torch.tensor(cosines, dtype=torch.float64)
        each = [F.cross_entropy(row[None], torch.tensor([s])).item() for s, row in enumerate(logits)]
        losses.append(sum(each) / len(each))
    return losses


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_it_is_the_cross_entropy_over_the_places_of_each_image_by_itself(temperature):
    queries, keys = features(3, 7, 5), 4 * features(3, 7, 5, seed=1)
    loss = patch_nce(queries, keys, temperature=temperature)
    assert loss.shape == (3,)
    assert loss.tolist() == pytest.approx(by_hand(queries, keys, temperature), rel=1e-12)
    assert patch_nce(queries[1:2], keys[1:2], temperature=temperature).item() == pytest.approx(loss[1].item(), rel=1e-12)


def test_features_that_are_all_alike_leave_a_guess_among_the_places():
    same = features(2, 1, 5).expand(-1, 8, -1)
    assert patch_nce(same, same, temperature=0.07).tolist() == pytest.approx([math.log(8)] * 2, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_orthogonal_features_that_are_found_again_leave_the_share_of_the_others(temperature):
    equal = 3 * torch.eye(6, dtype=torch.float64)[None]
    expected = math.log1p(5 * math.exp(-1 / temperature))
    assert patch_nce(equal, equal, temperature=temperature).item() == pytest.approx(expected, rel=1e-9)


def test_it_is_computed_in_float32_under_autocast():
    queries, keys = features(2, 16, 8, dtype=torch.float32), features(2, 16, 8, seed=1, dtype=torch.float32)
    expected = patch_nce(queries, keys, temperature=0.07)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(patch_nce(queries, keys, temperature=0.07), expected)
        rounded = patch_nce(queries.bfloat16(), keys.bfloat16(), temperature=0.07)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, patch_nce(queries.bfloat16().float(), keys.bfloat16().float(), temperature=0.07))
    assert expected.tolist() == pytest.approx(patch_nce(queries.double(), keys.double(), temperature=0.07).tolist(), rel=1e-5)
