import copy
import re
import sys

import pytest
import tiny
import torch
from errors import raises
from torch import nn

from genimg.data.captions import encode
from genimg.errors import ConfigError
from genimg.networks.discriminator import Discriminator
from genimg.networks.layers import INITIALISATIONS, initialise, spectral_normalise
from genimg.networks.text import ClipText, HashedWords, TextEncoder
from genimg.types import Progress

CAPTIONS = [
    "a small red circle",
    "a large blue square above a small red circle",
    "",
    "Two dogs, running; 3 cats!",
    "ein großes rotes Dreieck",
    "a b c d e f g h i j k l m n o p",
]


def text_encoder(**changes):
    torch.manual_seed(0)
    settings = {"dim": 12, "width": 8, "max_length": 64, "max_words": 10, "vocabulary": 500, "num_layers": 1}
    return TextEncoder(**(settings | changes))


def text_gan():
    generator = tiny.generator(condition=text_encoder())
    discriminator = Discriminator(
        features=tiny.features, condition=text_encoder(), head="projection", bias=False, initialisation="normal",
        spectral_norm=False,
    )  # fmt: skip
    return tiny.gan(generator=generator, discriminator=discriminator)


# Words


def reference_numbers(caption, words):
    """Of the words of one caption, by Python's regular expressions and integers."""
    found = re.findall(rb"[a-z0-9\x80-\xff]+", caption.encode()[:64].lower())[: words.max_words]
    factors = zip(words.byte_factors.tolist(), words.place_factors.tolist(), strict=True)
    hashed = [[sum(of_byte[b] * of_place[i] for i, b in enumerate(w)) for w in found] for of_byte, of_place in factors]
    return [[number % (2**31 - 1) % words.vocabulary for number in row] for row in hashed]


def test_words_are_split_at_what_is_no_letter_and_hashed():
    words = HashedWords(max_length=64, max_words=10, vocabulary=500)
    numbers, present = words(encode(CAPTIONS, 64))
    assert numbers.shape == (len(CAPTIONS), 10, 2)
    for row, caption in enumerate(CAPTIONS):
        expected = reference_numbers(caption, words)
        count = len(expected[0])
        assert present[row].tolist() == [True] * count + [False] * (10 - count)
        assert numbers[row, :count].T.tolist() == expected


def test_hashes_are_the_same_everywhere():
    numbers, _ = HashedWords(max_length=16, max_words=2, vocabulary=2048)(encode(["red circle"], 16))
    assert numbers.tolist() == [[[496, 1603], [1940, 663]]]  # a change would break every checkpoint


def test_different_words_have_different_numbers():
    vocabulary = [f"{a}{b}{c}" for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefghij"]
    words = HashedWords(max_length=3, max_words=1, vocabulary=2048)
    numbers, _ = words(encode(vocabulary, 3))
    pairs = {tuple(pair) for pair in numbers[:, 0].tolist()}
    assert len(pairs) == 1000  # 0.1 are expected to share both
    # 1000 balls in 2048 bins fill 2048 (1 - exp(-1000/2048)) = 791 of them, with a deviation of about 11.
    for number in (0, 1):
        assert len(set(numbers[:, 0, number].tolist())) == pytest.approx(791, abs=45)


def test_capitals_and_punctuation_change_nothing():
    encoder = text_encoder()
    vectors = encoder(encode(["a small red circle", "A small, red CIRCLE!", "  (a small red-circle) "], 64))
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[2])


def test_the_order_of_words_matters():
    captions = ["a circle above a square", "a square above a circle", "above circle a a square"]
    vectors = text_encoder()(encode(captions, 64))
    for i in range(3):
        for j in range(i):
            assert (vectors[i] - vectors[j]).abs().max() > 0.01


# The encoder


@pytest.mark.parametrize("length", [44, 48, 64, 300])
def test_padding_changes_nothing(length):
    encoder = text_encoder()
    captions = CAPTIONS[:3]
    assert torch.equal(encoder(encode(captions, length)), encoder(encode(captions, 64)))


def test_a_caption_is_cut_at_max_length_and_at_max_words():
    encoder = text_encoder(max_length=18, max_words=3)
    vectors = encoder(encode(["a small red circle above it", "a small red", "a small reddish"], 40))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_captions_do_not_influence_each_other():
    encoder = text_encoder()
    together = encoder(encode(CAPTIONS, 64))
    alone = torch.cat([encoder(encode([caption], 64)) for caption in CAPTIONS])
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("kind", INITIALISATIONS)
def test_the_vector_has_unit_scale_however_the_network_initialises_its_layers(kind, spectral_norm):
    encoder = text_encoder(vocabulary=2048, width=64, dim=128)
    initialise(encoder, kind)
    if spectral_norm:
        spectral_normalise(encoder)
    vectors = encoder(encode(CAPTIONS[:2], 64))
    assert torch.allclose(vectors.mean(dim=1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(vectors.std(dim=1, correction=0), torch.ones(2), atol=0.03)
    assert (vectors[0] - vectors[1]).square().mean().sqrt() > 0.1  # and tells captions apart


def test_blank_and_fitted_captions_have_one_shape():
    encoder = text_encoder(max_length=20)
    blank = encoder.blank(3)
    assert (blank.dtype, blank.shape, int(blank.sum())) == (torch.uint8, (3, 20), 0)
    for length in (5, 20, 33):
        tokens = encode(["red", "a circle that is long"], length)
        fitted = encoder.fitted(tokens)
        assert fitted.dtype == torch.uint8
        assert torch.equal(fitted, nn.functional.pad(tokens, (0, 20))[:, :20])


def test_an_empty_caption_has_finite_values_and_gradients():
    encoder = text_encoder()
    encoder(encoder.blank(2)).square().sum().backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_is_near_float32():
    encoder = text_encoder(width=64, dim=128)
    tokens = encode(CAPTIONS, 64)
    with torch.autocast("cpu", torch.bfloat16):
        low = encoder(tokens)
    assert torch.allclose(low.float(), encoder(tokens), rtol=0, atol=0.1)  # of values with deviation 1


def test_forward_never_waits_for_the_device():
    encoder = text_encoder().to("meta")  # on which no value can be looked at
    assert encoder(torch.zeros(4, 70, dtype=torch.uint8, device="meta")).shape == (4, 12)


def test_only_what_is_trained_is_saved():
    encoder = text_encoder()
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}


@pytest.mark.parametrize("setting", ["dim", "width", "max_length", "max_words", "vocabulary", "num_layers"])
def test_a_number_that_is_not_positive_is_refused(setting):
    with raises(ConfigError, f"{setting}=0"):
        text_encoder(**{setting: 0})


# In a GAN


class Recording:
    """Gradients of every update, without steps."""

    def __init__(self, gan):
        self.gan = gan
        self.reached = {}

    def forward(self, group, function, batch):
        return [microbatch | function(microbatch) for microbatch in batch]

    def __call__(self, group, loss, batch):
        parameters = self.gan.parameter_groups()[group]
        gradients = torch.autograd.grad(loss(batch[0])[0], parameters, allow_unused=True, retain_graph=True)
        names = {id(p): name for name, p in self.gan.named_parameters()}
        self.reached[group] = {names[id(p)] for p, g in zip(parameters, gradients, strict=True) if g is not None and g.any()}
        return {}


def test_each_network_trains_an_encoder_of_its_own():
    gan = text_gan()
    batch = {"image": torch.rand(4, 1, 16, 16) * 2 - 1, "caption": encode(CAPTIONS[:4], 48)}
    update = Recording(gan)
    gan.step([batch], Progress(images=0, batch_size=4), update)
    for group in ("generator", "discriminator"):
        own = {name for name in update.reached[group] if name.startswith(f"{group}.condition.")}
        assert own == {f"{group}.condition.{name}" for name, _ in getattr(gan, group).condition.named_parameters()}


def test_a_gan_remembers_captions_of_any_length_and_draws_them():
    gan = text_gan()
    captions = [CAPTIONS[i % 2] for i in range(gan.condition_bank_size)]
    gan.set_condition_bank({"caption": encode(captions, 48)})
    assert gan.conditions.shape == (gan.condition_bank_size, 64)
    drawn = gan.draw(range(20), 3)
    assert {row.numpy().tobytes().rstrip(b"\0").decode() for row in drawn["caption"]} == set(CAPTIONS[:2])
    assert gan.sample(drawn).shape == (20, 1, 16, 16)


# CLIP


def clip_text(path, **changes):
    return ClipText(**({"path": str(path), "dim": 6, "max_length": 64} | changes))


def write_clip(path, *, whole=False):
    """A tiny random text tower with a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    torch.manual_seed(1)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16).save_pretrained(path)
    end = vocabulary["<|endoftext|>"]
    text = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    if not whole:
        model = transformers.CLIPTextModel(text)
        model.save_pretrained(path)
        return model.eval()
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
              "patch_size": 4}  # fmt: skip
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision))
    model.save_pretrained(path)
    return model.text_model.eval()


@pytest.mark.parametrize("whole", [False, True])
def test_clip_is_the_towers_pooled_output_and_a_trained_layer(tmp_path, whole):
    tower = write_clip(tmp_path, whole=whole)
    encoder = clip_text(tmp_path)
    initialise(encoder, "normal")
    spectral_normalise(encoder)
    tokens = torch.tensor([[52, 17, 4, 29, 53]])  # "red": r e d</w>, between start and end
    with torch.no_grad():
        expected = encoder.output(tower(tokens).pooler_output)
        assert torch.allclose(encoder(encode(["red", "a green circle"], 40))[:1], expected, atol=1e-5)
        assert torch.allclose(encoder(encode(["red"], 20)), expected, atol=1e-5)


def test_clip_itself_is_neither_trained_nor_saved_nor_copied(tmp_path):
    write_clip(tmp_path)
    encoder = clip_text(tmp_path)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"output"}
    other = copy.deepcopy(encoder)
    tokens = encode(CAPTIONS, 64)
    assert torch.equal(other(tokens), encoder(tokens))
    encoder(tokens).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_clip_computes_each_caption_once(tmp_path, monkeypatch):
    write_clip(tmp_path)
    encoder, other = clip_text(tmp_path), clip_text(tmp_path)
    from genimg.networks import text

    seen = []
    encode_of_tower = text._Tower._encode
    monkeypatch.setattr(
        text._Tower, "_encode", lambda self, contents, device: seen.extend(contents) or encode_of_tower(self, contents, device)
    )
    first = encoder(encode(["red", "blue", "red"], 40))
    assert torch.equal(first[0], first[2])
    assert torch.equal(encoder(encode(["red", "blue", "red"], 20)), first)
    other(encode(["green", "blue"], 40))
    assert seen == [b"red", b"blue", b"green"]
    monkeypatch.setattr(text, "_MOST_KNOWN", 3)  # the memory is bounded: what no longer fits is computed anew
    assert torch.allclose(encoder(encode(["red", "yellow"], 40))[0], first[0], atol=1e-6)
    assert seen[3:] == [b"red", b"yellow"]


def test_a_directory_without_the_texts_weights_is_refused(tmp_path):
    tower = write_clip(tmp_path)
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in tower.state_dict().items() if "final_layer_norm" not in name}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with raises(ConfigError, "path", word="final_layer_norm"):
        clip_text(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with raises(ConfigError, "path", word="CLIP"):
        clip_text(tmp_path)


def test_clip_without_a_directory_or_the_package_is_refused(tmp_path, monkeypatch):
    with raises(ConfigError, "path", word="nowhere"):
        clip_text(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with raises(ConfigError, "path", word="transformers"):
        clip_text(tmp_path)


def test_conditional_batch_norm_takes_captions():
    generator = tiny.generator(condition=text_encoder(), normalisation="conditional_batch")
    for module in generator.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    generator.eval()
    latent = torch.zeros(2, 5).normal_()[:1].expand(2, -1)
    images = generator(latent, encode(CAPTIONS[:2], 64))
    assert (images[0] - images[1]).abs().max() > 0.01
