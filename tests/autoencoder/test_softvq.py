"""The soft quantiser: which codes are mixed, what the gradients reach, and the entropy of the assignments."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from flowprior.autoencoder import softvq
from flowprior.autoencoder.softvq import SoftVQBottleneck, entropy_loss
from flowprior.core import rng
from flowprior.core.codes import Codes

PROPERTY = settings(deadline=None, derandomize=True, max_examples=25)
LIKE = torch.zeros(1, dtype=torch.float64)
B, N, WIDTH, DIM, BOOKS, CODES = 3, 6, 7, 4, 2, 5
RUN = N // BOOKS


def normal(*shape: int, tag: str = "x") -> Tensor:
    """Fixed standard normal numbers, float64."""
    return rng.normal(shape, LIKE, rng.generator(0, tag))


def small(temperature: float = 0.3, codebook_norm: float = 2.0) -> SoftVQBottleneck:
    """Two codebooks of five codes in four dims, float64, the same at every call; codes not of norm 1."""
    with rng.scoped(0, "softvq"):
        module = SoftVQBottleneck(WIDTH, DIM, N, BOOKS, CODES, temperature).double()
    with torch.no_grad():
        module.codebooks *= codebook_norm
    return module


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Of two vectors, from its definition."""
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


def by_hand(module: SoftVQBottleneck, tokens: Tensor, of_weights: Tensor, of_mix: Tensor) -> Tensor:
    """Latents token by token, with codebooks of their own for the weights and for the mixture."""
    rows = []
    for image in module.linear(tokens):
        for i, token in enumerate(image):
            book = i // RUN
            scores = torch.stack([cosine(token, code) for code in of_weights[book]])
            weights = (scores / module.temperature).exp()
            weights = weights / weights.sum()
            rows.append(
                sum(
                    w * code / code.square().sum().sqrt()
                    for w, code in zip(weights, of_mix[book], strict=True)
                )
            )
    return torch.stack(rows).view(len(tokens), N, DIM)


def gradient(of: Tensor, at: Tensor) -> Tensor:
    """Of a weighed sum of the latents, so that no direction is left out."""
    weights = normal(*of.shape, tag="weights")
    (found,) = torch.autograd.grad((of * weights).sum(), at, retain_graph=True)
    return found


def alone(rows: Tensor) -> Tensor:
    """What one process gathers."""
    return rows


def book_of(indices: list[int], num_codes: int, confidence: float = 1.0) -> Tensor:
    """Logits of one codebook whose tokens have the given codes, [1, r, k]."""
    return confidence * F.one_hot(torch.tensor(indices), num_codes).float()[None]


# --- the mixture ------------------------------------------------------------------------------------


def test_latents_are_the_mean_of_the_codes_weighed_by_softmaxed_cosines() -> None:
    module, tokens = small(), normal(B, N, WIDTH)
    expected = by_hand(module, tokens, module.codebooks, module.codebooks)
    torch.testing.assert_close(module(tokens).latents, expected)


def test_logits_are_the_cosines_of_a_codebooks_own_tokens_image_by_image() -> None:
    module, tokens = small(), normal(B, N, WIDTH)
    mapped, logits = module.linear(tokens), module(tokens).logits
    assert logits.shape == (BOOKS, B * RUN, CODES)
    for book in range(BOOKS):
        for b in range(B):
            for i in range(RUN):
                expected = [
                    cosine(mapped[b, book * RUN + i], code) for code in module.codebooks[book]
                ]
                torch.testing.assert_close(logits[book, b * RUN + i], torch.stack(expected))


def test_without_a_posterior_the_mean_is_the_latents_and_noise_changes_nothing() -> None:
    module, tokens = small(), normal(B, N, WIDTH)
    codes = module(tokens)
    noisy = module(tokens, normal(B, N, DIM, tag="noise"))
    assert isinstance(codes, Codes)
    assert codes.mean is codes.latents
    assert codes.log_variance is None
    assert torch.equal(codes.latents, noisy.latents)
    assert torch.equal(codes.logits, noisy.logits)


def test_as_the_temperature_falls_to_0_each_token_becomes_its_nearest_code() -> None:
    tokens = normal(B, N, WIDTH)
    cold = small(temperature=1e-4)
    mapped = cold.linear(tokens)
    expected = torch.empty(B, N, DIM, dtype=torch.float64)
    for b in range(B):
        for i in range(N):
            codes = F.normalize(cold.codebooks[i // RUN], dim=-1)
            nearest = (F.normalize(mapped[b, i], dim=-1) - codes).square().sum(-1).argmin()
            expected[b, i] = codes[nearest]
    torch.testing.assert_close(cold(tokens).latents, expected)


def test_as_the_temperature_rises_all_tokens_of_a_codebook_become_the_mean_code() -> None:
    hot = small(temperature=1e9)
    expected = F.normalize(hot.codebooks, dim=-1).mean(1).repeat_interleave(RUN, 0)
    torch.testing.assert_close(hot(normal(B, N, WIDTH)).latents, expected.expand(B, -1, -1))


@PROPERTY
@given(temperature=st.floats(0.01, 10), scale=st.floats(1e-3, 1e3), norm=st.floats(1e-2, 1e2))
def test_latents_lie_in_the_codes_convex_hull(
    temperature: float, scale: float, norm: float
) -> None:
    """So within the unit ball; in no direction do they go further than the furthest code."""
    module = small(temperature, norm)
    latents = module(scale * normal(B, N, WIDTH)).latents
    assert latents.norm(dim=-1).max() <= 1 + 1e-12
    directions = F.normalize(normal(200, DIM, tag="directions"), dim=-1)
    reach = (F.normalize(module.codebooks, dim=-1) @ directions.T).amax(1)  # books, directions
    for book in range(BOOKS):
        run = latents[:, book * RUN : (book + 1) * RUN]
        assert ((run @ directions.T) <= reach[book] + 1e-12).all()


def test_the_norms_of_tokens_and_codes_do_not_count() -> None:
    module, tokens = small(), normal(B, N, WIDTH)
    before = module(tokens)
    with torch.no_grad():
        module.codebooks *= normal(BOOKS, CODES, 1, tag="norms").exp()
        module.linear.bias *= 3
    after = module(3 * tokens)
    torch.testing.assert_close(after.latents, before.latents)
    torch.testing.assert_close(after.logits, before.logits)


def test_each_run_of_tokens_has_a_codebook_of_its_own() -> None:
    """A new second codebook changes the second half of the tokens and their logits, nothing else."""
    module, tokens = small(), normal(B, N, WIDTH)
    before = module(tokens)
    with torch.no_grad():
        module.codebooks[1] = normal(CODES, DIM, tag="new")
    after = module(tokens)
    assert torch.equal(after.latents[:, :RUN], before.latents[:, :RUN])
    assert torch.equal(after.logits[0], before.logits[0])
    assert ((after.latents[:, RUN:] - before.latents[:, RUN:]).abs().amax(-1) > 1e-3).all()
    assert ((after.logits[1] - before.logits[1]).abs().amax(-1) > 1e-3).all()


def test_an_image_and_a_token_are_quantised_without_a_look_at_the_others() -> None:
    module, tokens = small(), normal(B, N, WIDTH)
    before = module(tokens).latents
    other = tokens.clone()
    other[1, 4] = normal(WIDTH, tag="other")
    changed = (module(other).latents != before).any(-1)
    assert changed.nonzero().tolist() == [[1, 4]]


# --- what the gradients reach -----------------------------------------------------------------------


def test_codes_learn_from_the_mixture_alone() -> None:
    """By autograd through latents made by hand: codes in the mixture only, against codes in both places."""
    module, tokens = small(), normal(B, N, WIDTH)
    books = module.codebooks
    in_mix = gradient(by_hand(module, tokens, books.detach(), books), books)
    in_both = gradient(by_hand(module, tokens, books, books), books)
    found = gradient(module(tokens).latents, books)
    torch.testing.assert_close(found, in_mix)
    assert (found - in_both).abs().max() > 0.1
    assert (found.abs().amax(-1) > 0).all()


def test_the_encoder_learns_through_the_weights_as_if_the_codes_were_fixed() -> None:
    module, tokens = small(), normal(B, N, WIDTH).requires_grad_()
    books = module.codebooks.detach()
    for at in (tokens, module.linear.weight, module.linear.bias):
        expected = gradient(by_hand(module, tokens, books, books), at)
        found = gradient(module(tokens).latents, at)
        torch.testing.assert_close(found, expected)
        assert found.abs().max() > 1e-3


def test_the_logits_gradient_reaches_the_tokens_and_no_code() -> None:
    module, tokens = small(), normal(B, N, WIDTH).requires_grad_()
    loss, _ = entropy_loss(module(tokens).logits, alone)
    loss.backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().amax(-1) > 0).all()
    assert module.linear.weight.grad is not None
    assert module.codebooks.grad is None


def test_a_token_gives_a_gradient_to_its_own_codebook_only() -> None:
    module = small()
    latents = module(normal(B, N, WIDTH)).latents
    for i in range(N):
        (found,) = torch.autograd.grad(latents[:, i].sum(), module.codebooks, retain_graph=True)
        assert [bool(book.any()) for book in found] == [book == i // RUN for book in range(BOOKS)]


def test_a_token_of_zeros_has_a_finite_gradient() -> None:
    module = small()
    with torch.no_grad():
        module.linear.bias.zero_()
    tokens = torch.zeros(B, N, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.isfinite(gradient(module(tokens).latents, tokens)).all()


# --- sizes, initialisation, precision ---------------------------------------------------------------


def test_the_papers_size_has_a_million_numbers_in_its_codebooks() -> None:
    """softvq-l-64: ViT-L's 1024 channels to 32, 4 codebooks of 8192 codes for 64 tokens."""
    with torch.device("meta"):
        module = SoftVQBottleneck(1024, 32, 64)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    assert sizes == {"codebooks": 1_048_576, "linear.weight": 32_768, "linear.bias": 32}
    assert module.codebooks.shape == (4, 8192, 32)
    assert module.temperature == 0.07


def test_fresh_codes_are_directions_without_a_preferred_one() -> None:
    """Norm 1, mean 0, covariance I / d, within five standard errors; no two codebooks are equal."""
    with rng.scoped(0, "fresh"):
        books = SoftVQBottleneck(2, 8, 4, 2, 4096).codebooks.detach()
    torch.testing.assert_close(books.norm(dim=-1), torch.ones(2, 4096))
    codes = books.flatten(0, 1)
    error = 5 / math.sqrt(len(codes))
    assert codes.mean(0).abs().max() < error / math.sqrt(8)
    covariance = codes.T @ codes / len(codes)
    assert (covariance - torch.eye(8) / 8).abs().max() < error / 8 * math.sqrt(2)
    fourth = codes.pow(4).mean()  # 3 / (d (d + 2)); directions of a cube's points have less
    assert fourth.item() == pytest.approx(3 / 80, rel=0.02)
    assert not torch.equal(books[0], books[1])


def test_equal_seeds_give_equal_modules_and_equal_latents() -> None:
    made = []
    for _ in range(2):
        with rng.scoped(3, "softvq"):
            module = SoftVQBottleneck(WIDTH, DIM, N, BOOKS, CODES)
        codes = module(normal(B, N, WIDTH).float())
        loss, _ = entropy_loss(codes.logits, alone)
        (grad,) = torch.autograd.grad(loss + codes.latents.sum(), module.linear.weight)
        made.append((module.codebooks, codes.latents, codes.logits, grad))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


def test_under_autocast_only_the_linear_map_is_narrow() -> None:
    """Cosines at bf16's precision, divided by 0.01, would be off by a half."""
    module, tokens = small().float(), normal(B, N, WIDTH).float()
    with torch.autocast("cpu", torch.bfloat16):
        mapped = module.linear(tokens)
        codes = module(tokens)
        loss, parts = entropy_loss(codes.logits, alone)
    assert mapped.dtype == torch.bfloat16
    assert codes.latents.dtype == codes.logits.dtype == torch.float32
    assert loss.dtype == torch.float32
    wide = small().float()
    with torch.no_grad():
        wide.linear = torch.nn.Identity()  # type: ignore[assignment]
        expected = wide(mapped.float())
        expected_loss, _ = entropy_loss(codes.logits, alone)
    torch.testing.assert_close(codes.latents, expected.latents, rtol=0, atol=1e-6)
    torch.testing.assert_close(codes.logits, expected.logits, rtol=0, atol=1e-6)
    assert torch.equal(loss, expected_loss)
    assert all(part.dtype == torch.float32 for part in parts.values())


def test_logits_of_half_precision_are_widened_before_the_softmax() -> None:
    narrow = normal(2, 8, 5).bfloat16()
    assert entropy_loss(narrow, alone)[0].dtype == torch.float32
    assert torch.equal(entropy_loss(narrow, alone)[0], entropy_loss(narrow.float(), alone)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"num_tokens": 6, "num_codebooks": 4},
            "6 latent tokens cannot be shared out evenly among 4",
        ),
        ({"num_codebooks": 0}, "num_codebooks 0"),
        ({"num_codes": 0}, "num_codes 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_sizes_that_cannot_be_are_told(wrong: dict[str, Any], message: str) -> None:
    sizes = {"width": WIDTH, "dim": DIM, "num_tokens": 8} | wrong
    with pytest.raises(ValueError, match=message):
        SoftVQBottleneck(**sizes)


def test_another_number_of_tokens_is_told() -> None:
    with pytest.raises(ValueError, match="4 tokens came, the codebooks are for 6"):
        small()(normal(B, 4, WIDTH))


# --- the entropy of the assignments -----------------------------------------------------------------


def test_tokens_that_are_undecided_among_all_codes_have_no_entropy_loss() -> None:
    """Both entropies are log k."""
    loss, parts = entropy_loss(torch.full((2, 9, 8), 0.3), alone)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert parts["assignment_entropy"].item() == pytest.approx(math.log(8))
    assert parts["code_perplexity"].item() == pytest.approx(8)


def test_tokens_that_all_have_the_same_code_have_no_entropy_loss() -> None:
    """Both entropies are 0."""
    loss, parts = entropy_loss(book_of([3] * 10, 8), alone)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert parts["assignment_entropy"].item() == pytest.approx(0, abs=1e-6)
    assert parts["code_perplexity"].item() == pytest.approx(1)


@PROPERTY
@given(used=st.integers(1, 8), times=st.integers(1, 4))
def test_tokens_spread_evenly_over_some_codes_have_minus_the_log_of_their_number(
    used: int, times: int
) -> None:
    loss, parts = entropy_loss(book_of(list(range(used)) * times, 8), alone)
    assert loss.item() == pytest.approx(-math.log(used), abs=1e-5)
    assert parts["code_perplexity"].item() == pytest.approx(used, rel=1e-5)


@PROPERTY
@given(scale=st.floats(0, 5), seed=st.integers(0, 20))
def test_the_entropy_loss_is_lowest_for_confident_tokens_that_use_all_codes_alike(
    scale: float, seed: int
) -> None:
    """It is minus a mutual information: in [-log k, 0], and -log k is reached."""
    logits = scale * torch.randn(2, 16, 8, generator=rng.generator(seed))
    best = book_of([*range(8), *range(8)], 8).expand(2, -1, -1)
    loss, lowest = (entropy_loss(x, alone)[0].item() for x in (logits, best))
    assert lowest == pytest.approx(-math.log(8), abs=1e-5)
    assert lowest - 1e-5 <= loss <= 1e-5


def test_the_entropy_loss_is_its_formula_with_each_codebook_by_itself() -> None:
    """Two codebooks that use different codes are not taken for one that uses both."""
    logits, temperature = normal(2, 12, 5), 0.7
    p = torch.softmax(logits / temperature, -1)
    losses, perplexities = [], []
    for book in p:
        sample = -(book * book.log()).sum(-1).mean()
        mean = book.mean(0)
        batch = -(mean * mean.log()).sum()
        losses.append(sample - batch)
        perplexities.append(batch.exp())
    loss, parts = entropy_loss(logits, alone, temperature)
    torch.testing.assert_close(loss, sum(losses) / 2)
    torch.testing.assert_close(parts["code_perplexity"], sum(perplexities) / 2)
    apart = torch.cat([book_of([0] * 6, 4), book_of([1] * 6, 4)])
    assert entropy_loss(apart, alone)[0].item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_the_entropy_loss_is_that_of_finite_differences() -> None:
    logits = normal(2, 4, 3).requires_grad_()
    torch.autograd.gradcheck(lambda x: entropy_loss(x, alone, 0.8, chunk=6)[0], logits)


def test_the_steepest_logits_have_a_finite_loss_and_gradient() -> None:
    """Cosines of 1 and -1 at temperature 0.01: 200 nats apart, and codes that nobody has a share in."""
    logits = (book_of([0, 1, 0, 1], 6) * 2 - 1).requires_grad_()
    loss, _ = entropy_loss(logits, alone)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(2), abs=1e-6)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@PROPERTY
@given(chunk=st.integers(1, 200))
def test_chunks_change_neither_the_entropy_loss_nor_its_gradient(chunk: int) -> None:
    """Also where a chunk is less than a row, or does not divide the rows."""
    logits = normal(2, 13, 5).requires_grad_()
    found = []
    for size in (2**24, chunk):
        loss, parts = entropy_loss(logits, alone, 0.5, size)
        (grad,) = torch.autograd.grad(loss, logits)
        found.append([loss, grad, *parts.values()])
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-14)


def test_no_assignment_is_kept_for_the_backward_pass() -> None:
    """What autograd saves besides the logits is a small part of their size."""
    logits = normal(2, 64, 32).requires_grad_()
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss, _ = entropy_loss(logits, alone, chunk=256)
    mine = logits.untyped_storage().data_ptr()
    others = {x.untyped_storage().data_ptr(): x.numel() for x in kept}
    others.pop(mine, None)
    assert others, "the hooks saw nothing"
    assert sum(others.values()) < logits.numel() / 4
    loss.backward()
    assert logits.grad is not None


@pytest.mark.parametrize("chunk", [1, 10, 49, 1000])
def test_a_chunk_has_at_most_the_size_asked_for_or_one_row_of_each_codebook(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    seen: list[Tensor] = []
    sums = softvq._sums

    def watched(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        seen.append(logits)
        return sums(logits, temperature)

    monkeypatch.setattr(softvq, "_sums", watched)
    entropy_loss(normal(2, 13, 5), alone, chunk=chunk)
    assert torch.equal(torch.cat(seen, dim=1), normal(2, 13, 5))
    assert max(x.numel() for x in seen) <= max(chunk, 10)


def test_a_loss_without_gradient_can_be_looked_at() -> None:
    logits = normal(2, 6, 5)
    with torch.no_grad():
        silent = entropy_loss(logits, alone)[0]
    assert not silent.requires_grad
    torch.testing.assert_close(silent, entropy_loss(logits.requires_grad_(), alone)[0].detach())


@pytest.mark.parametrize("ranks", [2, 3])
def test_on_several_ranks_the_gradient_is_that_of_one_process_with_all_rows(ranks: int) -> None:
    """Ranks are played one after the other, with the gather of a session: the own rows' gradient times the ranks.

    A launch averages gradients over ranks. Only means go around, not assignments.
    """
    everyone = normal(2, 4 * ranks, 5).requires_grad_()
    whole, whole_parts = entropy_loss(everyone, alone, 0.5)
    (expected,) = torch.autograd.grad(whole, everyone)
    shares = [x.detach().clone().requires_grad_() for x in everyone.chunk(ranks, dim=1)]
    means = [torch.softmax(x.detach() / 0.5, -1).mean(1)[None] for x in shares]
    losses, gradients = [], []
    for rank, share in enumerate(shares):
        asked: list[Any] = []

        def gather(rows: Tensor, rank: int = rank, asked: list[Any] = asked) -> Tensor:
            asked.append(rows.shape)
            torch.testing.assert_close(rows.detach(), means[rank])
            parts = list(means)
            parts[rank] = rows * ranks - rows.detach() * (ranks - 1)
            return torch.cat(parts)

        loss, parts = entropy_loss(share, gather, 0.5)
        (grad,) = torch.autograd.grad(loss, share)
        assert asked == [(1, 2, 5)]
        torch.testing.assert_close(parts["code_perplexity"], whole_parts["code_perplexity"])
        losses.append(loss)
        gradients.append(grad / ranks)
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
    torch.testing.assert_close(torch.cat(gradients, dim=1), expected)


def test_a_share_of_the_batch_alone_would_have_another_gradient() -> None:
    """So the test of ranks can tell the difference."""
    everyone = normal(2, 8, 5).requires_grad_()
    (whole,) = torch.autograd.grad(entropy_loss(everyone, alone, 0.5)[0], everyone)
    mine = everyone.detach()[:, :4].requires_grad_()
    (part,) = torch.autograd.grad(entropy_loss(mine, alone, 0.5)[0], mine)
    assert (part / 2 - whole[:, :4]).abs().max() > 1e-3


def test_an_entropy_at_no_temperature_is_told() -> None:
    with pytest.raises(ValueError, match=r"temperature is -1\.0"):
        entropy_loss(normal(1, 2, 3), alone, -1.0)


def test_descent_spreads_the_tokens_over_the_codes_and_leaves_none_between_them() -> None:
    """Eight free tokens in the plane, all about the first of four codes at right angles."""
    with rng.scoped(0, "descent"):
        module = SoftVQBottleneck(2, 2, 8, 1, 4)
    with torch.no_grad():
        module.linear.weight.copy_(torch.eye(2))
        module.linear.bias.zero_()
        module.codebooks[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    tokens = torch.tensor([1.0, 0.0]) + 0.5 * normal(1, 8, 2).float()
    tokens.requires_grad_()
    before = entropy_loss(module(tokens).logits, alone, 0.3)[1]
    optimizer = torch.optim.Adam([tokens], lr=0.05)
    for _ in range(200):
        loss, _ = entropy_loss(module(tokens).logits, alone, 0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes = module(tokens)
    assert before["code_perplexity"] < 2
    assert entropy_loss(codes.logits, alone, 0.3)[1]["code_perplexity"] > 3.7
    assert codes.logits.amax(-1).min() > 0.99
