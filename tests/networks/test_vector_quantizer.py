from typing import Any

import pytest
import torch
from errors import raises
from scipy import stats

from genimg.networks import vector_quantizer
from genimg.networks.vector_quantizer import Usage, VectorQuantizer, perplexity, straight_through


def quantizer(**changes: Any) -> VectorQuantizer:
    """K = 6, D = 3, with a codebook as wide as the features."""
    torch.manual_seed(0)
    made = VectorQuantizer(**({"num_codes": 6, "dim": 3, "decay": 0.9, "restart_below": 0.0} | changes))
    with torch.no_grad():
        made.codebook.normal_()
    return made


def features(count: int = 2, seed: int = 1, height: int = 4, width: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def rows(values: torch.Tensor) -> torch.Tensor:
    return torch.stack([values[n, :, y, x] for n in range(len(values)) for y in range(4) for x in range(5)])


def use(made: VectorQuantizer, *parts: torch.Tensor) -> torch.Tensor:
    return made.learn([made.usage(part, made.nearest(part)) for part in parts])


def test_every_vector_is_replaced_by_the_nearest_code():
    made = quantizer()
    values = features()
    codes, vectors = made(values)
    assert codes.dtype == torch.int64
    assert vectors.shape == values.shape
    for n in range(2):
        for y in range(4):
            for x in range(5):
                distances = [(values[n, :, y, x].double() - code.double()).square().sum().item() for code in made.codebook]
                nearest = min(range(6), key=lambda k: distances[k])
                assert codes[n, y, x].item() == nearest
                assert torch.equal(vectors[n, :, y, x], made.codebook[nearest])


def test_codes_are_found_in_float32_under_autocast():
    """Codes that differ by less than bfloat16 can tell."""
    made = quantizer()
    with torch.no_grad():
        made.codebook.copy_(torch.tensor([[100.0 + k / 8, 0.0, 0.0] for k in range(6)]))
    values = made.lookup(torch.arange(6).view(1, 2, 3)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        codes, vectors = made(values)
    assert codes.flatten().tolist() == list(range(6))
    assert vectors.dtype == torch.float32


def test_straight_through_gives_the_vectors_and_their_gradient_to_the_features():
    made = quantizer()
    values = features().requires_grad_()
    _, vectors = made(values)
    passed = straight_through(values, vectors)
    assert torch.allclose(passed, vectors, atol=1e-6)
    gradient = torch.randn(passed.shape, generator=torch.Generator().manual_seed(2))
    passed.backward(gradient)
    assert torch.equal(values.grad, gradient)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_codebook_is_the_moving_average_of_the_formula_however_the_batch_is_cut(parts):
    """Appendix A.1 of the paper, with the sums and counts of a loop."""
    made = quantizer()
    made.counts.copy_(torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0]))
    made.sums.copy_(made.codebook * made.counts[:, None])
    counts, sums, codebook = (value.double().tolist() for value in (made.counts, made.sums, made.codebook))
    for step in range(3):
        values = features(4, seed=step)
        found = use(made, *values.chunk(parts))
        new_counts, new_sums = [0.0] * 6, [[0.0] * 3 for _ in range(6)]
        for row in rows(values).tolist():
            distances = [sum((a - b) ** 2 for a, b in zip(row, code, strict=True)) for code in codebook]
            nearest = distances.index(min(distances))
            new_counts[nearest] += 1
            new_sums[nearest] = [a + b for a, b in zip(new_sums[nearest], row, strict=True)]
        assert found.tolist() == new_counts
        for k in range(6):
            counts[k] = 0.9 * counts[k] + 0.1 * new_counts[k]
            sums[k] = [0.9 * old + 0.1 * new for old, new in zip(sums[k], new_sums[k], strict=True)]
        total = sum(counts)
        for k in range(6):
            smoothed = (counts[k] + 1e-5) / (total + 6 * 1e-5) * total
            codebook[k] = [value / smoothed for value in sums[k]]
    assert torch.allclose(made.codebook, torch.tensor(codebook), atol=1e-5)
    assert torch.allclose(made.counts, torch.tensor(counts), rtol=1e-6)


def test_the_first_step_spreads_a_new_codebook_over_the_vectors():
    made = quantizer()
    with torch.no_grad():
        made.codebook[1:] = 100.0  # so that everything comes to the first code
    values = features(4)
    use(made, values)
    assert torch.allclose(made.codebook[0], rows(values).mean(dim=0), atol=1e-3)
    distances = torch.cdist(made.codebook[1:], rows(values)).min(dim=1).values
    assert distances.max() < 1e-3  # the smoothing of counts
    before = made.codebook.clone()
    with torch.no_grad():
        made.codebook[1:] = 100.0
    use(made, values)  # with restart_below=0 that was the only time
    assert torch.allclose(made.codebook[1:], before[1:], atol=1e-3)


def test_codes_of_little_use_start_anew_and_weigh_as_much_as_the_average():
    made = quantizer(restart_below=0.1)
    made.counts.copy_(torch.tensor([10.0, 0.01, 10.0, 10.0, 0.02, 10.0]))
    made.sums.copy_(made.codebook * made.counts[:, None])
    with torch.no_grad():
        made.codebook[[1, 4]] = 100.0  # where nothing comes to
    alive = made.codebook[[0, 2, 3, 5]].clone()
    values = features(4)
    use(made, values)
    assert torch.cdist(made.codebook[[1, 4]], rows(values)).min(dim=1).values.max() < 1e-3
    assert not torch.allclose(made.codebook[1], made.codebook[4])
    # (0.9 * 40.03 + 0.1 * 80) / 6
    assert made.counts[[1, 4]].tolist() == pytest.approx([(0.9 * 40.03 + 8) / 6] * 2, rel=1e-5)
    assert torch.cdist(made.codebook[[0, 2, 3, 5]], rows(values)).min(dim=1).values.min() > 1e-3
    assert torch.allclose(made.codebook[[0, 2, 3, 5]], alive, atol=0.5)


def test_every_vector_of_a_step_is_as_likely_to_be_a_new_code():
    made = quantizer(num_codes=2000, restart_below=0.0)
    with torch.no_grad():
        made.codebook[1:] = 100.0
    values = features(4)
    use(made, *values.chunk(2))  # every code but the first starts anew, from one of 80 vectors of two microbatches
    nearest = torch.cdist(made.codebook[1:], rows(values)).argmin(dim=1)
    assert stats.chisquare(torch.bincount(nearest, minlength=80)).pvalue > 0.001


def test_ranks_agree_on_the_microbatch_with_the_highest_priority(monkeypatch):
    """Two ranks of two microbatches are one rank of four."""
    made = quantizer(restart_below=0.5)
    usages = [made.usage(part, made.nearest(part)) for part in features(4).chunk(4)]
    alone = vector_quantizer._candidates(usages)
    for k in range(6):
        winner = max(usages, key=lambda usage: usage.priorities[k].item())
        assert torch.equal(alone[k], winner.candidates[k])

    def best_of(rank: list[Usage]) -> list[torch.Tensor]:
        """What a rank sends: its own best, found without others."""
        sent = []
        monkeypatch.setattr(vector_quantizer, "all_gather_equal_rows", lambda tensor: sent.append(tensor) or tensor)
        vector_quantizer._candidates(rank)
        return sent

    sent = [torch.cat(each) for each in zip(best_of(usages[:2]), best_of(usages[2:]), strict=True)]
    answers = iter(sent)
    monkeypatch.setattr(vector_quantizer, "all_gather_equal_rows", lambda tensor: next(answers))
    assert torch.equal(vector_quantizer._candidates(usages[:2]), alone)


def test_a_saved_codebook_goes_on_as_if_nothing_had_happened():
    made, resumed = quantizer(restart_below=0.5), quantizer(restart_below=0.5)
    torch.manual_seed(3)
    use(made, features(seed=1))
    resumed.load_state_dict(made.state_dict())
    for each in (made, resumed):
        torch.manual_seed(4)
        use(each, features(seed=2))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in made.state_dict().items())


def test_a_codebook_that_learns_by_gradient_is_a_parameter_and_nothing_else_moves_it():
    made = quantizer(decay=None, restart_below=None)
    assert [name for name, _ in made.named_parameters()] == ["codebook"]
    assert list(made.state_dict()) == ["codebook"]
    before = made.codebook.detach().clone()
    assert use(made, features()).sum().item() == 40
    assert torch.equal(made.codebook, before)
    codes, vectors = made(features())
    vectors.sum().backward()
    counts = torch.bincount(codes.flatten(), minlength=6).float()
    assert torch.equal(made.codebook.grad, counts[:, None].expand(-1, 3))


def test_a_codebook_of_averages_has_no_parameters():
    assert not list(quantizer().parameters())


@pytest.mark.parametrize(("counts", "expected"), [([7.0] * 6, 6.0), ([0, 0, 5, 0, 0, 0], 1.0), ([1, 1, 0, 0, 0, 2], 2**1.5)])
def test_perplexity_is_the_number_of_codes_that_are_used_alike(counts, expected):
    assert perplexity(torch.tensor(counts, dtype=torch.float32)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_codes": 1}, "num_codes=1"),
        ({"dim": 0}, "dim=0"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"decay": None}, "restart_below=0.0"),
        ({"restart_below": None}, "restart_below=null"),
        ({"restart_below": 1.0}, "restart_below=1.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with raises(ValueError, words):
        quantizer(**changes)
