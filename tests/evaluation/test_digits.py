"""The judge of digits: the classifier that ships, all images at once."""

import pytest
import torch

from flowprior.encoders.shipped import load_digits_network
from flowprior.evaluation.digits import OnDigits
from flowprior.images.digits import Digits
from flowprior.images.pixels import from_uint8, to_uint8

TRAIN, HELD_OUT = Digits("train", 0), Digits("validation", 0)
REAL = to_uint8(HELD_OUT.images(range(len(HELD_OUT))))


@pytest.fixture(scope="module")
def judge() -> OnDigits:
    """With the held-out digits as the real images."""
    return OnDigits(TRAIN, HELD_OUT, 100)


def test_the_real_images_themselves_are_at_distance_zero(judge: OnDigits) -> None:
    found = judge.judge(REAL.split(50), HELD_OUT.labels)
    assert found["fd_digits"] == pytest.approx(0, abs=1e-3)
    assert found["precision"] == found["recall"] == 1


def test_label_agreement_is_the_classifiers_accuracy_on_the_images(judge: OnDigits) -> None:
    logits = load_digits_network("evaluation")(from_uint8(REAL))
    accuracy = float((logits.argmax(-1) == HELD_OUT.labels).double().mean())
    assert judge.judge([REAL], HELD_OUT.labels)["label_agreement"] == pytest.approx(accuracy)
    wrong = judge.judge([REAL], (HELD_OUT.labels + 1) % 10)
    assert wrong["label_agreement"] < 0.05


def test_noise_is_far_and_imprecise(judge: OnDigits) -> None:
    noise = torch.randint(256, REAL.shape, generator=torch.Generator().manual_seed(0))
    found = judge.judge([noise.to(torch.uint8)], HELD_OUT.labels)
    assert found["fd_digits"] > 5
    assert found["precision"] < 0.5


def test_without_labels_there_is_the_distance_alone(judge: OnDigits) -> None:
    assert set(judge.judge([REAL])) == {"fd_digits"}


def test_pieces_of_any_size_give_the_same(judge: OnDigits) -> None:
    assert judge.judge(REAL.split(7)) == judge.judge([REAL])


def test_a_classifier_that_has_seen_held_out_images_does_not_judge() -> None:
    """Another split: some of what is held out now was trained on."""
    with pytest.raises(ValueError, match=r"digits networks .* --split-seed N"):
        OnDigits(Digits("train", 1), Digits("validation", 1), 100)
