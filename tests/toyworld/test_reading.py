import random

import torch

from warpcache_ray.toyworld import folder
from warpcache_ray.toyworld.captions import parse, vary
from warpcache_ray.toyworld.reading import SLOTS, Reader, answers, code
from warpcache_ray.toyworld.train.data import draw_scene


def test_answers_are_within_their_slots() -> None:
    """Each question has its answer among the possible ones, for one shape and for two."""
    rng = random.Random(0)
    for _ in range(300):
        given = answers(draw_scene(rng))
        assert len(given) == len(SLOTS)
        assert all(0 <= a < n for a, n in zip(given, SLOTS, strict=True))


def test_swapped_colours_have_other_answers() -> None:
    """Who has which colour is asked, not only which colours there are."""
    one = parse("a red circle moving left fast over a blue background, camera panning up")
    other = parse("a blue circle moving up fast over a red background, camera panning left")
    assert one is not None
    assert other is not None
    assert sum(a != b for a, b in zip(answers(one), answers(other), strict=True)) == 4


def test_code_says_each_answer_once() -> None:
    """A scene's code has a single one for each question, in the place of the answer."""
    rng = random.Random(0)
    right = torch.tensor([answers(draw_scene(rng)) for _ in range(20)])
    parts = code(right).split(SLOTS, 1)
    assert torch.equal(torch.stack([p.argmax(1) for p in parts], 1), right)
    assert all(torch.equal(p.sum(1), torch.ones(20)) for p in parts)


def test_a_small_encoder_learns_to_read() -> None:
    """A few steps on the same captions lower the loss: gradients reach encoder, queries and heads."""
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = folder.build_tokenizer()
    encoder, reader = folder.build_text_encoder(len(tokenizer)), Reader(folder.TEXT_DIM)
    scenes = [draw_scene(rng) for _ in range(16)]
    tokens = tokenizer([vary(s, rng) for s in scenes], padding=True, return_tensors="pt")
    right = torch.tensor([answers(s) for s in scenes])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *reader.parameters()], 5e-3)
    losses = []
    for _ in range(40):
        states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        loss, _ = reader.loss(states, tokens.attention_mask, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
