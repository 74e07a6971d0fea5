import torch

from genimg.training.host_copies import PinnedCopies, snapshot


def test_a_snapshot_keeps_its_values_and_memory_format_while_the_original_changes():
    weight = torch.nn.Parameter(torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    state = {"weights": [weight], "step": 3, "names": ("a", "b")}
    copy = snapshot(state)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    assert torch.equal(copy["weights"][0], before)
    assert copy["weights"][0].stride() == weight.stride()
    assert not copy["weights"][0].requires_grad
    assert (copy["step"], copy["names"]) == (3, ("a", "b"))


def test_copies_from_the_host_have_memory_of_their_own():
    copies, weight = PinnedCopies(), torch.zeros(3)
    first, wait = copies.copy([weight, 1])
    wait()
    second, _ = copies.copy([weight + 1, 2])
    weight.fill_(5)
    assert [first[0].tolist(), second[0].tolist(), first[1], second[1]] == [[0.0] * 3, [1.0] * 3, 1, 2]
