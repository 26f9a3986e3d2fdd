"""MAR: what conditions look at, what is learned, what is decayed."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowprior.config.presets import resolve
from flowprior.core import rng
from flowprior.core.optim import adamw
from flowprior.generators.protocol import LatentShape
from flowprior.mar.masking import draw_masking
from flowprior.mar.model import MAR
from flowprior.mar.shape import Masking

from ..config.committed import ROOT, tree
from .small import SMALL, batch, fresh, masking, normal, places, trained

N, D, CLASSES = 7, 3, 4


@pytest.mark.parametrize("num_masked", [1, 4, N])
def test_conditions_do_not_look_at_masked_tokens(num_masked: int) -> None:
    """Whatever stands there, not even a number, the answer is the same to the bit."""
    model = trained()
    tokens, labels, orders = batch()
    hidden = places(orders[:, :num_masked])
    other = tokens.masked_fill(hidden.unsqueeze(-1), math.nan)
    one, two = (model.conditions(x, labels, orders, num_masked) for x in (tokens, other))
    assert one.isfinite().all()
    assert torch.equal(one, two)


@pytest.mark.parametrize("place", range(N))
def test_conditions_look_at_every_visible_token(place: int) -> None:
    """A change to it moves the condition of every place of its own sequence and of no other."""
    model = trained()
    tokens, labels, orders = batch()
    num_masked = 3
    changed = tokens.clone()
    changed[:, place] += 1
    visible = places(orders[:, num_masked:])[:, place]
    before, after = (model.conditions(x, labels, orders, num_masked) for x in (tokens, changed))
    moved = (after - before).norm(dim=-1)
    assert moved[visible].min() > 1e-4
    assert not moved[~visible].any()


@pytest.mark.parametrize("num_masked", [0, 3, N])
def test_conditions_look_at_the_label(num_masked: int) -> None:
    """Any two of the classes and "no class" say something else at every place."""
    model = trained()
    tokens, _, orders = batch(1)
    assert model.no_class == CLASSES
    said = [
        model.conditions(tokens, torch.tensor([label]), orders, num_masked)
        for label in range(CLASSES + 1)
    ]
    for i, one in enumerate(said):
        for two in said[:i]:
            assert (one - two).norm(dim=-1).min() > 1e-4


def test_conditions_do_not_depend_on_the_order_within_the_visible_and_within_the_masked() -> None:
    """Only on which places are visible: attention sees a set of tokens with positions."""
    model = trained()
    tokens, labels, orders = batch()
    num_masked = 4
    before = model.conditions(tokens, labels, orders, num_masked)
    masked_turned = torch.cat([orders[:, :num_masked].flip(1), orders[:, num_masked:]], dim=1)
    assert torch.equal(model.conditions(tokens, labels, masked_turned, num_masked), before)
    both_turned = torch.cat([orders[:, :num_masked], orders[:, num_masked:].flip(1)], dim=1)
    # The sums of the attention run in another order, in float32.
    torch.testing.assert_close(
        model.conditions(tokens, labels, both_turned, num_masked), before, rtol=1e-4, atol=1e-4
    )


def test_dropout_acts_in_training_only() -> None:
    """And then it reads torch's global stream, which `rng.scoped` fixes."""
    model = trained(SMALL._replace(dropout=0.3))
    tokens, labels, orders = batch()
    arguments = (tokens, labels, orders, 3)
    assert torch.equal(model.conditions(*arguments), model.conditions(*arguments))
    model.train()
    said = []
    for tag in ("a", "a", "b"):
        with rng.scoped(0, tag):
            said.append(model.conditions(*arguments))
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])


def test_the_loss_at_initialisation_is_one_plus_the_variance_of_the_data() -> None:
    """The head answers zero, so that E (data - noise)^2 = 1 + E data^2 remains, whatever the masking."""
    b, draws = 200, 32
    tokens = 1.5 * normal(b, N, D, tag="tokens")
    drawn = draw_masking(tokens, torch.arange(b) % CLASSES, draws, rng.generator(0))
    assert not fresh().head(tokens, torch.zeros(b, N), torch.zeros(b, N, 16)).any()
    masked = tokens.gather(1, drawn.orders[:, : drawn.num_masked, None].expand(-1, -1, D))
    exact = (masked - drawn.noise).square().mean().item()
    found = fresh()(*drawn).item()
    # Sums of 1e5 float32 numbers in another order.
    assert found == pytest.approx(exact, rel=1e-5)
    # Relative standard error: sqrt(2 / 3500 tokens x dims) = 2%, of the variance of the data alone.
    assert found == pytest.approx(1 + 1.5**2, rel=0.06)


def test_the_loss_is_the_mean_of_the_head_over_masked_tokens_and_draws() -> None:
    """Token by token and draw by draw: (v(x_t, t | condition) - (data - noise))^2."""
    model = trained()
    tokens, labels, orders, m, draws, times = arguments = masking(3)
    conditions = model.conditions(tokens, labels, orders, m)
    losses = []
    for k in range(2):
        for i in range(3):
            for j, place in enumerate(orders[i, :m].tolist()):
                data, noise, t = tokens[i, place], draws[k, i, j], times[k, i, j]
                x_t = (1 - t) * noise + t * data
                answer = model.head(x_t, t, conditions[i, place])
                losses.append((answer - (data - noise)).square().mean().item())
    # A float32 network on one vector at a time or on all.
    assert model(*arguments).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_masked_tokens_are_targets_only_and_visible_ones_context_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the conditions cut off, the gradient of masked tokens stays to the bit, that of visible ones is zero."""
    model = trained()
    tokens, *arguments = masking()
    masked = places(arguments[1][:, : arguments[2]])

    def gradient() -> Tensor:
        leaf = tokens.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(leaf, *arguments), leaf)
        return found

    whole = gradient()
    conditions = model.conditions
    monkeypatch.setattr(model, "conditions", lambda *args: conditions(*args).detach())
    as_targets = gradient()
    assert torch.equal(whole[masked], as_targets[masked])
    assert whole[masked].abs().min() > 0
    assert not as_targets[~masked].any()
    assert whole[~masked].abs().amax(-1).min() > 0


def test_the_gradient_of_the_loss_reaches_every_parameter() -> None:
    """But for the rows of classes that are not in the batch."""
    model = trained()
    model(*masking()).backward()
    unused = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert not unused
    table = model.class_table.weight.grad
    assert table is not None
    assert not table[model.no_class].any()


def decayed(decay: Any) -> set[str]:
    """Names of the parameters with decay."""
    model = fresh()
    groups = adamw(model, 1e-3, (0.9, 0.95), 0.02, model.undecayed(decay)).param_groups
    assert {g["weight_decay"] for g in groups} == {0.02, 0.0}
    chosen = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    return {name for name, p in model.named_parameters() if id(p) in chosen}


def test_the_decay_falls_where_it_is_wanted() -> None:
    """Never on a bias or norm; on embeddings and the head by choice."""
    model = fresh()
    matrices = {name for name, p in model.named_parameters() if p.ndim >= 2}
    linear = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    embeddings = {
        "class_table.weight",
        "mask_token",
        "encoder_positions",
        "decoder_positions",
        "head_positions",
    }
    assert decayed("matrices") == matrices
    assert decayed("linear") == linear == matrices - embeddings
    assert decayed("authors") == {name for name in matrices if not name.startswith("head.")}
    assert embeddings < decayed("authors")


def test_mar_b_has_the_papers_parameters() -> None:
    """The preset imagenet: 171.75 M in the transformers and 35,766,304 in the head, 207.5 M in all (reference.md §7).

    Transformers here means everything but the head: class table, positions and mask token included.
    """
    cfg = resolve(ROOT, tree("imagenet")).params
    latents = LatentShape(cfg.train_ae.num_latents, cfg.project.dim, 1000)
    with torch.device("meta"):
        model = MAR.build(latents, cfg.train_mar)
    head = sum(p.numel() for p in model.head.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert head == 35_766_304
    assert total == pytest.approx(207.5e6, rel=1e-3)
    assert total - head == pytest.approx(171.75e6, rel=1e-3)


def test_a_mar_is_built_with_the_masks_of_its_section_and_again_from_its_config() -> None:
    cfg = resolve(
        ROOT, tree("smoke", train_mar__head_draws=3, train_mar__mask_ratio_low=0.2)
    ).params
    with rng.scoped(0):
        model = MAR.build(LatentShape(8, 4, 10), cfg.train_mar)
    assert model.masking == Masking(3, 0.2, cfg.train_mar.mask_ratio_std)
    assert model.shape[:4] == (8, 4, 10, cfg.train_mar.width)
    again = MAR.from_config(model.config)
    assert again.shape == model.shape
    again.load_state_dict(model.state_dict())


def test_a_batch_has_the_draws_of_the_masking_or_as_many_as_asked_for() -> None:
    model = MAR(SMALL, Masking(3, 0.0, 0.5))
    tokens, labels, _ = batch()
    drawn = model.draw_batch(tokens, labels, rng.generator(0, "draw"))
    assert len(drawn.noise) == len(drawn.t) == 3
    again = draw_masking(tokens, labels, 3, rng.generator(0, "draw"), 0.0, 0.5)
    assert drawn.num_masked == again.num_masked
    assert torch.equal(drawn.noise, again.noise)
    assert len(model.draw_batch(tokens, labels, rng.generator(0), num_draws=1).noise) == 1


def test_ranks_share_all_of_a_batch_but_the_number_of_masked_tokens() -> None:
    """Each rank's loss is of its sequences; their mean is that of the whole."""
    model = trained()
    tokens, labels, _ = batch(6)
    whole = draw_masking(tokens, labels, 2, rng.generator(0, "draw"))
    parts = [
        whole.shared(lambda part, dim, rank=rank: part.chunk(3, dim)[rank]) for rank in range(3)
    ]
    assert {part.num_masked for part in parts} == {whole.num_masked}
    assert torch.equal(torch.cat([part.noise for part in parts], 1), whole.noise)
    assert torch.equal(torch.cat([part.orders for part in parts]), whole.orders)
    mean = sum(float(model(*part)) for part in parts) / 3
    assert mean == pytest.approx(float(model(*whole)), rel=1e-5)
