"""Projections from features to targets: what each operator is, and the unit spread they share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowprior.core import rng
from flowprior.prior.projection import OPERATORS, Operator, Projection
from flowprior.stats.moments import Moments

PROPERTY = settings(deadline=None, derandomize=True, max_examples=30)


def features_of(n: int, dim: int, seed: int = 0) -> Tensor:
    """Correlated features with distinct spreads and a mean, float32."""
    draw = rng.generator(seed, "features")
    mixing = torch.randn(dim, dim, generator=draw) / dim**0.5
    spread = torch.linspace(2, 0.2, dim)
    return (torch.randn(n, dim, generator=draw) * spread) @ mixing + torch.randn(
        dim, generator=draw
    )


def moments_of(features: Tensor) -> Moments:
    """Their moments."""
    moments = Moments(features.shape[-1])
    moments.update(features)
    return moments


def fit(features: Tensor, dim: int, operator: Operator, seed: int = 0) -> Projection:
    """A projection for these features."""
    return Projection.fit(moments_of(features), dim, operator, seed)


# --- what all operators share -----------------------------------------------------------------------


@PROPERTY
@given(
    operator=st.sampled_from(OPERATORS),
    dims=st.tuples(st.integers(1, 12), st.integers(1, 12)).map(sorted),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 50),
)
def test_targets_have_unit_spread(
    operator: Operator, dims: list[int], scale: float, seed: int
) -> None:
    """Whatever the features' scale, the variance of the targets about their mean, averaged over dims, is 1."""
    features = scale * features_of(50, dims[1], seed)
    targets = fit(features, dims[0], operator, seed)(features)
    assert targets.shape == (50, dims[0])
    # float32 targets of features whose mean may exceed their spread a hundredfold.
    assert targets.double().var(0, correction=0).mean().item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("operator", OPERATORS)
def test_targets_are_scaled_features_times_the_matrix(operator: Operator) -> None:
    """A linear map: the mean is mapped too, not removed; any leading shape."""
    features = features_of(60, 8)
    projection = fit(features, 3, operator)
    assert (projection.in_dim, projection.out_dim, projection.operator) == (8, 3, operator)
    expected = float(projection.scale) * (features.double() @ projection.matrix.double())
    # float32 matrix products of numbers of order one.
    torch.testing.assert_close(projection(features).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(projection(torch.zeros(2, 8)), torch.zeros(2, 3))
    shaped = projection(features.view(3, 4, 5, 8))
    torch.testing.assert_close(shaped.view(60, 3), projection(features))
    assert projection(features[0]).shape == (3,)


@pytest.mark.parametrize("operator", OPERATORS)
def test_where_the_dims_agree_every_operator_is_the_identity(operator: Operator) -> None:
    """Features keep their axes and get unit spread."""
    features = features_of(60, 8)
    projection = fit(features, 8, operator)
    assert projection.operator == "identity"
    assert torch.equal(projection.matrix, torch.eye(8))
    expected = features / moments_of(features).std
    torch.testing.assert_close(projection(features), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_projection_is_frozen_and_is_saved_whole(operator: Operator) -> None:
    """Nothing in it learns, and what is saved holds the matrix and the scale; no buffer is of float64."""
    features = features_of(60, 8)
    projection = fit(features, 3, operator)
    assert not list(projection.parameters())
    state = projection.tensors()
    assert all(buffer.dtype == torch.float32 for buffer in projection.buffers())
    again = Projection(state["matrix"], float(state["scale"]), operator, projection.seed)
    assert torch.equal(again(features), projection(features))


def test_targets_do_not_depend_on_the_unit_of_the_features() -> None:
    """Features in millionths give the targets that they give in units."""
    features = features_of(60, 8)
    small = 2.0**-23 * features
    expected = fit(features, 3, "avg_pool")(features)
    torch.testing.assert_close(fit(small, 3, "avg_pool")(small), expected)


# --- random -----------------------------------------------------------------------------------------


def test_the_random_matrix_has_entries_of_variance_one_over_the_features_dim() -> None:
    """N(0, 1/D): mean, variance and kurtosis of 32 768 entries."""
    entries = fit(features_of(20, 512), 64, "random").matrix.double().flatten() * 512**0.5
    n = len(entries)
    # Five standard errors: 1/sqrt(n), sqrt(2/n), sqrt(96/n).
    assert entries.mean().item() == pytest.approx(0, abs=5 / n**0.5)
    assert entries.var().item() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert entries.pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)


def test_the_random_matrix_nearly_preserves_distances() -> None:
    """Johnson and Lindenstrauss: squared distances times D/d err by sqrt(2/d) in the mean square."""
    points = torch.randn(60, 1024, generator=rng.generator(0, "points"))
    projection = fit(points, 128, "random")
    ratios = (
        torch.pdist(points @ projection.matrix).square()
        * (1024 / 128)
        / torch.pdist(points).square()
    )
    # 1770 pairs of 60 points; chi-square with 128 degrees of freedom over 128, standard deviation 0.125.
    assert ratios.mean().item() == pytest.approx(1, abs=0.05)
    assert ratios.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.25)
    assert ratios.min() > 0.5
    assert ratios.max() < 1.7


def test_the_random_matrix_depends_on_the_seed_alone() -> None:
    """Equal seeds give equal matrices whatever the features, and the global stream is not touched."""
    before = torch.random.get_rng_state()
    matrix = fit(features_of(60, 8), 3, "random", seed=1).matrix
    assert torch.equal(matrix, fit(5 + features_of(20, 8, seed=9), 3, "random", seed=1).matrix)
    assert not torch.equal(matrix, fit(features_of(60, 8), 3, "random", seed=2).matrix)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- average pooling --------------------------------------------------------------------------------


@PROPERTY
@given(dims=st.tuples(st.integers(1, 20), st.integers(1, 20)).map(sorted))
def test_average_pooling_is_that_of_torch(dims: list[int]) -> None:
    """Adaptive windows over neighbouring channels, also where d does not divide D."""
    features = features_of(30, dims[1])
    projection = fit(features, dims[0], "avg_pool")
    expected = torch.nn.functional.adaptive_avg_pool1d(features, dims[0])
    torch.testing.assert_close(features @ projection.matrix, expected, rtol=1e-5, atol=1e-5)


def test_average_pooling_of_a_divisor_is_the_mean_of_each_window() -> None:
    """Six channels to two: means of three."""
    matrix = fit(features_of(30, 6), 2, "avg_pool").matrix
    torch.testing.assert_close(matrix, torch.kron(torch.eye(2), torch.full((3, 1), 1 / 3)))


# --- principal components ---------------------------------------------------------------------------


def test_principal_components_are_orthonormal_and_ordered_as_in_scikit_learn() -> None:
    """Up to signs; each component has its largest entry positive, so that signs are fixed too."""
    features = features_of(500, 10).double()
    matrix = fit(features, 4, "pca").matrix.double()
    decomposition = pytest.importorskip("sklearn.decomposition")
    reference = decomposition.PCA(4, svd_solver="full").fit(features.numpy())
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(4).double(), rtol=0, atol=1e-6)
    alignment = (matrix.T @ torch.from_numpy(reference.components_.T)).abs()
    torch.testing.assert_close(alignment, torch.eye(4).double(), rtol=0, atol=1e-6)
    variances = ((features - features.mean(0)) @ matrix).var(0).numpy()
    np.testing.assert_allclose(variances, reference.explained_variance_, rtol=1e-5)
    assert (matrix.gather(0, matrix.abs().argmax(0, keepdim=True)) > 0).all()


def test_principal_components_keep_more_variance_than_any_other_operator() -> None:
    """Before scaling, over orthonormal bases of the spaces that the operators keep."""
    features = features_of(500, 10)
    covariance = moments_of(features).covariance
    kept = {}
    for operator in OPERATORS:
        basis = torch.linalg.qr(fit(features, 4, operator).matrix.double()).Q
        kept[operator] = (basis.T @ covariance @ basis).trace().item()
    assert max(kept, key=kept.__getitem__) == "pca"


# --- errors -----------------------------------------------------------------------------------------


def test_a_random_projection_also_goes_up() -> None:
    """The second reading of the paper's 8-dim codebook: targets of rank 8 in more dims, of unit spread all the same."""
    features = torch.randn(4000, 8, generator=rng.generator(0, "up"))
    moments = Moments(8)
    moments.update(features)
    projection = Projection.fit(moments, 32, "random", 0)
    targets = projection(features)
    assert targets.shape == (4000, 32)
    assert torch.linalg.matrix_rank(targets) == 8
    assert float(targets.var(0).mean()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("operator", "dim"),
    [
        (operator, dim)
        for operator in OPERATORS
        for dim in (0, -1, 9)
        if (operator, dim) != ("random", 9)
    ],
)
def test_a_dim_outside_the_features_is_an_error(operator: Operator, dim: int) -> None:
    """The message names both numbers and the range."""
    with pytest.raises(ValueError, match=f"cannot project 8 channels to {dim}\\b.*\\b1 .* 8"):
        fit(features_of(20, 8), dim, operator)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_features_that_do_not_vary_are_an_error(operator: Operator, value: float) -> None:
    """Constants cannot be given unit spread, however large."""
    with pytest.raises(ValueError, match="do not vary"):
        fit(torch.full((20, 8), value), 3, operator)


def test_moments_of_nothing_are_an_error() -> None:
    """Without features there is no spread."""
    with pytest.raises(ValueError, match="do not vary"):
        Projection.fit(Moments(8), 3, "random", seed=0)


def test_an_unknown_operator_is_an_error() -> None:
    """Refused by the function, or before it by the type checker where that is installed."""
    with pytest.raises((ValueError, TypeError)):
        fit(features_of(20, 8), 3, "umap")  # type: ignore[arg-type]


def test_features_with_other_channels_are_an_error() -> None:
    """The message names both numbers."""
    projection = fit(features_of(20, 8), 3, "random")
    with pytest.raises(ValueError, match="features have 7 channels, the projection takes 8"):
        projection(torch.zeros(2, 7))
