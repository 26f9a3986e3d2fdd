"""The pickle that no reader may run is armed; else its absence would prove nothing."""

import pickle

from .strangers import MARKER, PICKLE


def test_the_pickle_is_armed() -> None:
    MARKER.unlink(missing_ok=True)
    pickle.loads(PICKLE)
    assert MARKER.exists()
    MARKER.unlink()
