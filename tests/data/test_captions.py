import logging

import pytest
import torch

from genimg.data.captions import caption_length, decode, encode

TEXTS = ["a small red circle", "", "« ça va » — naïve", "日本語の説明", "👩‍🚀 in space", "e\u0301", "line one\nline two"]


def test_texts_come_back():
    captions = encode(TEXTS, 64)
    assert captions.dtype == torch.uint8
    assert captions.shape == (len(TEXTS), 64)
    assert decode(captions) == TEXTS
    for row, text in zip(captions.tolist(), TEXTS, strict=True):
        content = text.encode("utf-8")
        assert row == [*content, *[0] * (64 - len(content))]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("length", range(0, 30))
def test_a_text_that_is_too_long_is_cut_after_its_last_character_that_fits(text, length):
    (found,) = decode(encode([text], length))
    assert text.startswith(found)
    assert len(found.encode()) <= length
    rest = text[len(found) :]
    assert not rest or len((found + rest[0]).encode()) > length


def test_no_text_is_an_empty_one():
    assert encode([None, ""], 4).tolist() == [[0] * 4] * 2
    assert encode([], 4).shape == (0, 4)
    assert decode(encode([], 4)) == []


def test_what_has_no_place_in_a_text_is_replaced():
    assert decode(encode(["a\0b", "half \ud83d pair"], 16)) == ["ab", "half ? pair"]


def test_a_batch_that_is_cut_differently_holds_the_same_bytes():
    whole = encode(TEXTS, 24)
    assert torch.equal(torch.cat([encode([text], 24) for text in TEXTS]), whole)


@pytest.mark.parametrize(("longest", "length"), [(0, 16), (1, 16), (16, 16), (17, 32), (100, 112), (256, 256), (300, 256)])
def test_the_length_is_that_of_the_longest_in_bytes_rounded_up(longest, length):
    assert caption_length(["", None, "x" * longest]) == length
    assert caption_length(["é" * (longest // 2) + "x" * (longest % 2)]) == length


def test_captions_that_will_be_cut_are_counted_in_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        caption_length(["x" * 256])
        assert caplog.messages == []
        caption_length(["x" * 257, "y", "é" * 150])
    assert caplog.messages == ["2 of 3 captions are truncated to 256 bytes: the longest has 300"]
