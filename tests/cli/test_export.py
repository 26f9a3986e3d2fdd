"""`flowprior export`: what it says."""

from pathlib import Path

from ..autoencoder.test_exporting import latents, read_lightningdit
from .conftest import mistake, output


def test_it_says_what_to_tell_the_other_project(tmp_path: Path) -> None:
    latents(tmp_path / "data" / "latents")
    common = "export", "latents", "--data", str(tmp_path / "data"), "--format"
    said = output(*common, "lightningdit", "--out", str(tmp_path / "a")).splitlines()
    assert said[0] == f"{tmp_path / 'a'}: 20 images, [2, 2, 2], in 1 file"
    assert "model.in_chans 2" in said[1]
    assert len(read_lightningdit(tmp_path / "a")["latents"]) == 20
    said = output(*common, "mar", "--out", str(tmp_path / "b")).splitlines()
    assert said[0].endswith("in 20 files")
    assert "--vae_embed_dim 2" in said[1]


def test_one_row_is_said_where_the_tokens_are_no_square(tmp_path: Path) -> None:
    latents(tmp_path / "data" / "latents", tokens=6)
    common = "export", "latents", "--data", str(tmp_path / "data"), "--format", "mar", "--out"
    assert "6 tokens are no square" in output(*common, str(tmp_path / "a"))
    said = output(*common, str(tmp_path / "b"), "--grid", "2x3")
    assert "[2, 2, 3]" in said
    assert "no square" not in said


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    common = "export", "latents", "--data", str(tmp_path), "--out", str(tmp_path / "out")
    assert "use one of lightningdit, mar" in mistake(*common, "--format", "dit")
    assert "is not HxW" in mistake(*common, "--format", "mar", "--grid", "9")
    assert "the stage `encode_latents`" in mistake(*common, "--format", "mar")
