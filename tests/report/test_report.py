"""The report: what it computes of results, and the page that it makes of them."""

import io
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from flowprior.config import params
from flowprior.experiments import campaign, claims, results
from flowprior.experiments.listing import Listing, experiments, listed, read_listing
from flowprior.report import charts, contents, ledger, page
from flowprior.report import markdown as markdown_tables

from .closure import ROOT

LISTING = read_listing()
VOID = {"meta", "link", "img", "br"}


def png() -> bytes:
    """A sheet."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((91, 73), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def made_up(**effects: float) -> dict[str, results.Result]:
    """Results of all that is listed; `effects` are what a row adds to the Fréchet distance."""
    found = {}
    dice = np.random.default_rng(0)
    code = results.code_of(ROOT, "HEAD")
    for one in experiments(listed(LISTING)):
        row, seed = one.name.rsplit("-s", 1)
        metrics = {
            "encode_latents.psnr_db": 24 + dice.normal(0, 0.1),
            "encode_latents.rfd_digits": 2.0,
            "encode_latents.std_ratio_median": 0.3 + dice.normal(0, 0.01),
            "encode_latents.latent_recall": 0.1,
            "encode_latents.coverage": 0.1,
            "encode_latents.nll_gap_nats": -1.5,
            "encode_latents.linear_probe_accuracy": 0.97,
            "encode_latents.collapsed": int(seed == "0"),
            "encode_latents.num_images": 359,
            "sample_eval.fd_digits": 20 + effects.get(row, 0.0) + dice.normal(0, 0.5),
            "sample_eval.fd_digits_guided": 10 + dice.normal(0, 0.5),
            "sample_eval.label_agreement": 0.9,
            "sample_eval.label_agreement_guided": 0.95,
            "sample_eval.num_samples": 1000,
            "sample_eval.num_real": 359,
            "sample_eval.extractor": "digits",
            "sample_eval.guidance_scale": 2.0,
            "train_ae.seconds": 30.0
            if "none" in one.name or row in ("ae", "ae_paper_masks")
            else 45.0,
            "train_ae.peak_memory_mib": 1000.0,
        } | {
            f"train_ae.{kind}_r5{end}": 0.99
            for kind in ("pearson", "spearman")
            for end in ("", "_low", "_high")
        }
        found[one.key] = results.Result(
            key=one.key,
            name=one.name,
            seed=int(seed),
            preset="digits",
            settings=one.settings,
            code=code,
            machine={"cpu": "a processor", "threads": 1, "torch": "2", "python": "3"},
            ran=["train_ae"],
            metrics=metrics,
            curves={
                "alignment": {
                    "step": [50.0, 100.0],
                    "alignment_loss": [2.0, 1.0 + dice.normal(0, 0.1)],
                    "mean_log_r5": [0.0, -1.0],
                }
            },
            sheets={"samples": png(), "reconstructions": png()},
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def built() -> contents.Report:
    """A report of made-up results, in which the semantic prior is far better than all others; one row is missing."""
    there = made_up(semantic=-12.0, discrete=5.0)
    lost = [key for key, one in there.items() if one.name.startswith("pca-")]
    older = next(key for key, one in there.items() if one.name == "kl-s1")
    there[older] = there[older]._replace(code={**there[older].code, "train_mar": "0"})
    kept = {key: one for key, one in there.items() if key not in lost}
    return contents.build(
        ROOT,
        LISTING,
        campaign.State(experiments(listed(LISTING)), kept, results.code_of(ROOT, "HEAD")),
    )


# --- what is computed -------------------------------------------------------------------------------


def test_holm_adjusts_for_the_number_of_claims() -> None:
    """The worked example: 0.01, 0.04, 0.03, 0.005 give 0.03, 0.06, 0.06, 0.02; what was not tested is not counted."""
    adjusted = claims.holm([0.01, 0.04, math.nan, 0.03, 0.005])
    assert adjusted[:2] == pytest.approx([0.03, 0.06])
    assert math.isnan(adjusted[2])
    assert adjusted[3:] == pytest.approx([0.06, 0.02])
    assert claims.holm([0.9, 0.8]) == [1.0, 1.0]


def asked(values: dict[str, Sequence[float]], **claim: Any) -> claims.Finding:
    """What is found of one claim."""
    plain: dict[str, Any] = {"says": "x", "by": "y", "metric": "a.b", "expect": "lower"}
    table = {"title": "t", "rows": {row: "" for row in values}}
    tree = {
        "preset": "digits",
        "seeds": [0],
        "tables": {"t": table},
        "paper": {},
        "columns": [],
        "claims": [plain | claim],
    }
    listing = params.parse_as(Listing, tree)
    (found,) = claims.findings(listing, lambda table, row, metric: values[row])
    return found


def test_two_groups_are_compared_by_welch() -> None:
    a, b = [1.0, 1.2, 1.1], [3.0, 3.4, 2.9]
    found = asked({"a": a, "b": b}, rows=["a"], against=["b"])
    test = stats.ttest_ind(a, b, equal_var=False)
    assert found.p == found.adjusted == pytest.approx(test.pvalue)
    assert found.difference == pytest.approx(-2.0)
    assert found.low < -2.0 < found.high < 0
    assert found.verdict == "holds"
    assert (
        asked({"a": a, "b": b}, rows=["a"], against=["b"], expect="higher").verdict
        == "does not hold"
    )
    assert (
        asked({"a": a, "b": b}, rows=["a"], against=["b"], expect="same").verdict == "does not hold"
    )


def test_rows_of_a_claim_are_one_group() -> None:
    """All their runs."""
    found = asked({"a": [1.0, 1.1], "c": [1.2], "b": [3.0, 3.1]}, rows=["a", "c"], against=["b"])
    assert found.first.n == 3
    assert found.second is not None
    assert found.second.n == 2


def test_a_group_is_compared_with_a_number() -> None:
    found = asked({"a": [0.3, 0.31, 0.29]}, rows=["a"], than=1.0)
    assert found.p == pytest.approx(stats.ttest_1samp([0.3, 0.31, 0.29], 1.0).pvalue)
    assert found.difference == pytest.approx(-0.7)
    assert found.low < -0.7 < found.high
    assert found.verdict == "holds"


def test_a_trend_is_a_rank_correlation_over_a_table() -> None:
    values = {"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [3.0, 3.2]}
    found = asked(values, trend="t", expect="higher")
    assert found.difference == pytest.approx(
        stats.spearmanr([0, 0, 1, 1, 2, 2], [1, 1.1, 2, 2.1, 3, 3.2])[0]
    )
    assert found.verdict == "holds"
    assert asked(values, trend="t", expect="lower").verdict == "does not hold"


def test_what_cannot_be_told_is_undecided() -> None:
    """Also what is expected to be the same: that cannot be shown."""
    noisy = {"a": [1.0, 9.0, 4.0], "b": [2.0, 8.0, 5.0]}
    for expect in ("lower", "higher", "same"):
        assert asked(noisy, rows=["a"], against=["b"], expect=expect).verdict == "undecided"


@pytest.mark.parametrize(
    "values",
    [{"a": [], "b": []}, {"a": [1.0], "b": [2.0, 3.0]}, {"a": [1.0, 1.0], "b": [1.0, 1.0]}],
)
def test_without_runs_or_spread_there_is_no_test(values: dict[str, Sequence[float]]) -> None:
    found = asked(values, rows=["a"], against=["b"])
    assert found.verdict == "no results"
    assert math.isnan(found.p)


def test_a_summary_has_the_sample_standard_deviation() -> None:
    assert claims.summary([1.0, 3.0]) == (2, 2.0, pytest.approx(math.sqrt(2)))
    assert math.isnan(claims.summary([1.0]).std)
    assert math.isnan(claims.summary([]).mean)


@pytest.mark.parametrize(
    ("better", "order"),
    [("higher", [3.0, 1.0, -2.0]), ("lower", [-2.0, 1.0, 3.0]), ("zero", [1.0, -2.0, 3.0]), ("one", [1.0, 3.0, -2.0])],
)  # fmt: skip
def test_better_is_higher_lower_or_nearer(better: str, order: list[float]) -> None:
    assert sorted([1.0, -2.0, 3.0], key=lambda value: contents.worse(value, better)) == order


def test_the_tables_have_means_marks_and_the_papers_figures(built: contents.Report) -> None:
    priors = built.grids[0]
    rows = dict(priors.rows)
    assert "kl †" in rows
    assert list(rows)[-1] == "real training images"
    column = priors.head.index("FD")
    assert re.fullmatch(r"\d+\.\d ± \d\.\d", rows["ae"][column].text)
    assert [name for name, cells in priors.rows if cells[column].best] == ["semantic"]
    assert priors.paper["semantic"][0] == "1.26"
    assert "FID" not in priors.head
    titles = [grid.title for grid in built.grids]
    operators = dict(built.grids[titles.index(LISTING.tables["operators"].title)].rows)
    assert {cell.text for cell in operators["pca"]} == {contents.plus_minus(claims.summary([]), 1)}
    assert built.missing == ["pca-s0", "pca-s1", "pca-s2"]
    assert built.older == ["kl-s1"]


def test_the_verdicts_follow_the_results(built: contents.Report) -> None:
    """Semantic is far better, and the textual ones are not as good as it."""
    verdicts = {one.claim.says: one.verdict for one in built.findings}
    assert verdicts["A semantic prior generates better than KL"] == "holds"
    assert verdicts["Textual features do as well as semantic ones"] == "does not hold"
    assert verdicts["A random projection generates better than PCA"] == "no results"
    assert verdicts["The harder the pull, the better the generation"] == "undecided"


def test_real_images_are_judged_as_samples_are(built: contents.Report) -> None:
    """The classifier knows nearly all of them, and they lie near the held-out ones."""
    assert built.real["sample_eval.label_agreement"] > 0.98
    assert 0 < built.real["sample_eval.fd_digits"] < 10


def test_the_ledger_counts_what_an_objective_adds(built: contents.Report) -> None:
    """Time against the runs without one; operations by the plan."""
    found = {one.name: one for one in built.objectives}
    assert found["none"].added_time == 0
    assert found["none"].added_flops == 0
    assert found["flow_prior"].added_time == pytest.approx(0.5)
    assert found["flow_prior"].added_flops == pytest.approx(0.62, abs=0.02)
    assert found["dmd"].added_flops > found["flow_prior"].added_flops > found["kl"].added_flops
    stages = {one.stage: one for one in built.stages}
    assert stages["train_ae"].seconds == 45.0
    assert stages["train_ae"].peak_mib == 1000.0
    assert stages["train_mar"].seconds is None
    assert stages["train_mar"].gflop == pytest.approx(5869, rel=0.01)


# --- what is shown ----------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects what a page has; a tag that is closed by another is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_needs_nothing_else(built: contents.Report) -> None:
    """No script, nothing from the network; every image has words, every link a target, every table a name."""
    text = page.render(built)
    found = Reader(text)
    assert not found.all("script")
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert "url(" not in text
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in found.all("a")} <= set(ids)
    assert all(image["alt"] for image in found.all("img"))
    assert all(svg["aria-label"] for svg in found.all("svg"))
    scrolling = [div for div in found.all("div") if div.get("class") == "scroll"]
    assert scrolling
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in scrolling)
    assert "prefers-color-scheme: dark" in text
    assert found.all("html")[0]["lang"] == "en"
    assert "nan" not in re.sub(r"base64,[^\"]+", "", text).lower().replace("nano", "")


def test_the_page_says_what_is_missing_and_what_is_old(built: contents.Report) -> None:
    text = page.render(built)
    assert "3 not run yet" in text
    assert "pca-s0, pca-s1, pca-s2" in text
    assert "Made by other code than the committed" in text
    assert text.count("<img") == 2 * 23  # rows that have results


def test_a_page_without_any_results_stands(built: contents.Report) -> None:
    state = campaign.State(experiments(listed(LISTING)), {}, results.code_of(ROOT, "HEAD"))
    empty = contents.build(ROOT, LISTING, state)
    Reader(page.render(empty))
    assert "no results" in markdown_tables.render(empty)


def test_images_that_nothing_judged_are_shown_all_the_same(built: contents.Report) -> None:
    """As with `evaluation.extractor=none`."""
    code = results.code_of(ROOT, "HEAD")
    unjudged = {
        key: one._replace(
            metrics={
                k: v for k, v in one.metrics.items() if "fd_" not in k and "agreement" not in k
            }
        )
        for key, one in made_up().items()
    }
    state = campaign.State(experiments(listed(LISTING)), unjudged, code)
    text = page.render(contents.build(ROOT, LISTING, state))
    assert text.count("<img") == 2 * 24
    assert (
        "FD"
        not in re.sub(r"base64,[^\"]+", "", text).split('id="images"')[1].split("</section>")[0]
    )


def test_names_cannot_break_the_page(built: contents.Report) -> None:
    """What people write in the list is text."""
    tree = LISTING.model_dump()
    tree["tables"]["priors"]["title"] = "<script>alert(1)</script> & more"
    spoiled = built._replace(
        listing=params.parse_as(Listing, tree),
        grids=[built.grids[0]._replace(title="<script>alert(1)</script> & more"), *built.grids[1:]],
    )
    assert not Reader(page.render(spoiled)).all("script")


def test_the_markdown_tables_are_even(built: contents.Report) -> None:
    """As many cells in every line, one table after the other."""
    text = markdown_tables.render(built)
    widths: list[int] = []
    for line in text.splitlines():
        if line.startswith("|"):
            widths.append(line.count("|"))
        else:
            assert len(set(widths)) <= 1, line
            widths = []
    assert "**8.0 ± " in text or re.search(r"\*\*[78]\.\d ± ", text)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 41.0), (1e-5, 3e-5), (999.0, 1001.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 9
    assert all(low <= tick <= high for tick in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])


def test_a_chart_puts_larger_values_to_the_right() -> None:
    text = charts.dot_plot([charts.Dots("a", [1.0, 3.0]), charts.Dots("b", [])], "label")
    first, second = (float(x) for x in re.findall(r'<circle class="first" cx="([\d.]+)"', text))
    assert charts.LEFT < first < second < charts.WIDTH
    assert charts.dot_plot([charts.Dots("a", [])], "label") == ""
    assert charts.scatter([charts.Point("a", [])], "x", "y") == ""
    assert charts.two_axes([], "x", "y", "t") == ""


def test_a_long_name_has_room() -> None:
    text = charts.dot_plot([charts.Dots("a_rather_long_name", [1.0, 3.0])], "label")
    name, label = re.findall(r'x="([\d.]+)"[^>]*text-anchor="end"', text)
    assert float(name) > charts.LETTER * len("a_rather_long_name")
    assert float(label) < charts.WIDTH


def test_names_that_would_cover_one_another_are_left_to_the_pointer() -> None:
    points = [charts.Point(f"number_{k}", [(1.0 + k / 1e3, 1.0)]) for k in range(20)]
    text = charts.scatter([*points, charts.Point("alone", [(9.0, 9.0)])], "x", "y")
    shown = re.findall(r">(number_\d+|alone)</text>", text)
    assert "alone" in shown
    assert 1 < len(shown) < 10
    assert text.count("<title>") == 21


def test_one_value_alone_has_a_scale() -> None:
    for value in (0.0, 5.0, -2.0):
        scale = charts.Scale([value], 0, 100)
        assert 0 < scale(value) < 100


def test_without_a_store_there_are_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one made."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert ledger.tracked_runs(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
