"""Priors go to the hub and come from it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from flowprior import FlowPrior
from flowprior.core import rng
from flowprior.core.io import ArtifactError

from ..hub_server import Hub, hub  # noqa: F401

NAME = "them/small-prior"
SMALL = {"dim": 3, "steps": 20, "width": 16, "depth": 1, "batch_vectors": 64, "time_groups": 8}


@pytest.fixture(scope="module")
def prior() -> FlowPrior:
    """Of 400 vectors, so that its fit is measured."""
    torch.manual_seed(0)
    return FlowPrior.fit(torch.randn(400, 6), **SMALL)


def same(one: FlowPrior, other: FlowPrior) -> bool:
    latents = torch.randn(16, one.dim, generator=torch.Generator().manual_seed(0))
    losses = [
        float(each.alignment_loss(latents, torch.Generator().manual_seed(1)))
        for each in (one, other)
    ]
    return losses[0] == losses[1]


def test_what_was_pushed_comes_back(prior: FlowPrior, hub: Hub) -> None:  # noqa: F811
    address = prior.push_to_hub(NAME, source="patch tokens of a test", license="apache-2.0")
    assert address.startswith(f"{hub.url}/{NAME}/commit/")
    loaded = FlowPrior.from_pretrained(NAME)
    assert same(prior, loaded)
    assert loaded.fitted == prior.fitted
    assert torch.equal(loaded.targets, prior.targets)
    # Once more, from the cache: the hub is asked for headers, and for no file.
    hub.asked.clear()
    FlowPrior.from_pretrained(NAME)
    assert not [one for one in hub.asked if one.startswith("GET")]
    hub.asked.clear()
    assert same(prior, FlowPrior.from_pretrained(NAME, local_files_only=True))
    assert not hub.asked


def test_the_page_tells_what_a_stranger_wants_to_know(prior: FlowPrior, hub: Hub) -> None:  # noqa: F811
    from huggingface_hub import ModelCard

    prior.push_to_hub(NAME, source="tokens | of\na test: 'x'", license="cc-by-nc-4.0")
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "flowprior"
    assert prior.fitted is not None
    assert f"**{prior.fitted.verdict}**" in card.text
    assert "tokens \\| of a test: 'x' |" in card.text
    assert f"FlowPrior.from_pretrained('{NAME}')" in card.text
    assert "random, 6 to 3 channels" in card.text
    assert f"[400, {prior.dim}]" in card.text
    prior.push_to_hub(NAME, source="a test")
    assert "| licence | none given |" in hub.files(NAME)["README.md"].decode()


def test_targets_stay_at_home_if_asked(prior: FlowPrior, hub: Hub) -> None:  # noqa: F811
    prior.push_to_hub(NAME, source="secret", with_targets=False)
    assert "targets.safetensors" not in hub.files(NAME)
    assert "| targets that come along | none |" in hub.files(NAME)["README.md"].decode()
    loaded = FlowPrior.from_pretrained(NAME)
    assert loaded.targets is None
    assert prior.targets is not None
    assert same(prior, loaded)


def test_what_a_prior_had_before_and_has_no_more_is_removed(prior: FlowPrior, hub: Hub) -> None:  # noqa: F811
    """And nothing that was not the prior's."""
    prior.push_to_hub(NAME, source="a test")
    hub.commit(NAME, "main", {"notes.txt": b"mine"})
    assert "targets.safetensors" in hub.files(NAME)
    prior.push_to_hub(NAME, source="secret", with_targets=False)
    assert "targets.safetensors" not in hub.files(NAME)
    assert "notes.txt" in hub.files(NAME)


def test_a_hub_that_cannot_be_reached_is_told(
    prior: FlowPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(RuntimeError, match="cannot be pushed to the hub"):
        prior.push_to_hub(NAME, source="a test", token=Hub.TOKEN)


def test_branches_proposals_and_private_repositories(
    prior: FlowPrior,
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    prior.push_to_hub(NAME, source="a test", private=True, revision="trial")
    assert "manifest.json" not in hub.files(NAME)
    assert same(prior, FlowPrior.from_pretrained(NAME, revision="trial"))
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        FlowPrior.from_pretrained(NAME)
    with pytest.raises(ValueError, match="has no revision 'other'"):
        FlowPrior.from_pretrained(NAME, revision="other")
    proposal = prior.push_to_hub(NAME, source="a test", create_pr=True)
    assert proposal.endswith("/discussions/1")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(ValueError, match=f"the hub has no model '{NAME}', or a private one"):
        FlowPrior.from_pretrained(NAME, revision="trial", cache_dir=tmp_path)


def test_all_files_are_of_one_commit(prior: FlowPrior, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    """Also where the branch moves on while they are downloaded."""
    prior.push_to_hub(NAME, source="a test")
    first = hub.branches[NAME]["main"]
    FlowPrior.from_pretrained(NAME)
    wanted = [one for one in hub.asked if one.startswith("GET")]
    assert f"GET /{NAME}/resolve/main/manifest.json" in wanted
    assert f"GET /{NAME}/resolve/{first}/velocity.safetensors" in wanted
    assert len([one for one in wanted if "/main/" in one]) == 1


def test_what_is_damaged_or_strange_is_refused(prior: FlowPrior, hub: Hub) -> None:  # noqa: F811
    prior.push_to_hub(NAME, source="a test")
    whole = hub.files(NAME)
    hub.commit(NAME, "main", {"velocity.safetensors": whole["velocity.safetensors"][:-1] + b"x"})
    with pytest.raises(ArtifactError, match=r"velocity\.safetensors is damaged"):
        FlowPrior.from_pretrained(NAME)
    manifest = json.loads(whole["manifest.json"])
    manifest["files"]["../../../../elsewhere"] = {"bytes": 1, "sha256": "0"}
    hub.commit(NAME, "main", whole | {"manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(ArtifactError, match="names an impossible file"):
        FlowPrior.from_pretrained(NAME)
    assert not [one for one in hub.asked if "elsewhere" in one]
    hub.commit(NAME, "main", whole | {"manifest.json": b"[]"})
    with pytest.raises(ArtifactError, match="schema version"):
        FlowPrior.from_pretrained(NAME)


def test_names_that_are_none(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="no name of a model on the hub"):
        FlowPrior.from_pretrained(tmp_path / "none" / "of" / "these")
    with pytest.raises(ValueError, match="the hub has no model 'them/nothing'"):
        FlowPrior.from_pretrained("them/nothing")
    with pytest.raises(TypeError, match="local_dir"):
        FlowPrior.from_pretrained("them/nothing", local_dir=tmp_path)
    with pytest.raises(RuntimeError, match=r"cannot be had from the hub"):
        FlowPrior.from_pretrained("them/nothing", local_files_only=True)


def test_folders_are_taken_as_they_are(prior: FlowPrior, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    """One that was saved, one within another, and what `hf download --local-dir` leaves."""
    prior.save(tmp_path / "one" / "prior")
    assert same(prior, FlowPrior.from_pretrained(tmp_path / "one" / "prior"))
    assert same(prior, FlowPrior.from_pretrained(tmp_path / "one", subfolder="prior"))
    local = shutil.copytree(tmp_path / "one" / "prior", tmp_path / "local")
    (local / ".cache").mkdir()
    (local / "README.md").write_text("a page", encoding="utf-8")
    assert same(prior, FlowPrior.from_pretrained(str(local)))
    assert not hub.asked


def test_a_prior_in_a_folder_of_a_repository(prior: FlowPrior, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    prior.save(tmp_path / "prior")
    hub.create(NAME)
    files = {f"a/b/{file.name}": file.read_bytes() for file in (tmp_path / "prior").iterdir()}
    hub.commit(NAME, "main", files | {"huge.safetensors": b"not asked for"})
    assert same(prior, FlowPrior.from_pretrained(NAME, subfolder="a/b"))
    assert not [one for one in hub.asked if "huge" in one]


def test_a_refusal_of_the_hub_is_told(
    prior: FlowPrior,
    hub: Hub,  # noqa: F811
) -> None:
    with pytest.raises(RuntimeError, match=f"{NAME} cannot be pushed to the hub: .*401"):
        prior.push_to_hub(NAME, source="a test", token="hf_wrong")
    with pytest.raises(ValueError, match="Repo id"):
        prior.push_to_hub("no name at all", source="a test")


def test_the_extra_is_named_where_it_is_missing(
    prior: FlowPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match="flowprior\\[hub\\]"):
        FlowPrior.from_pretrained(NAME)
    with pytest.raises(ModuleNotFoundError, match="flowprior\\[hub\\]"):
        prior.push_to_hub(NAME, source="a test")


def test_a_prior_whose_fit_was_not_measured_is_checked_by_its_samples(
    prior: FlowPrior,
    hub: Hub,  # noqa: F811
) -> None:
    """As the pipeline's are."""
    unmeasured = FlowPrior(prior.velocity, prior.projection, 8, prior.targets)
    unmeasured.push_to_hub(NAME, source="a test")
    word = prior.check(prior.sample(1000, rng.generator(0, "card"))).verdict
    assert f"| samples beside the targets | **{word}**" in hub.files(NAME)["README.md"].decode()
    FlowPrior(prior.velocity, prior.projection, 8).push_to_hub(NAME, source="a test")
    assert "| fit | not measured |" in hub.files(NAME)["README.md"].decode()
