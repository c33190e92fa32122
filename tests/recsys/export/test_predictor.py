import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import served

from feature_store.columns import SchemaMismatch
from recsys.export import predictor as predictors
from recsys.export import tensors
from recsys.export.bundle import BundleMismatch, ExportConfig, Processor
from recsys.export.predictor import Predictor
from recsys.export.publish import export_bundle
from recsys.export.server import respond
from recsys.export.signature import RowMismatch


def test_scores_are_the_models_own_row_by_row(predictor, features, model):
    raw = served.rows(40, seed=3)
    expected = served.trained_scores(features, model, raw)
    scores = predictor.score(raw)
    assert (scores.dtype, scores.shape) == (np.float32, (40, 1))
    assert np.ptp(scores) > 0.3, "scores that hardly differ would hide a mistake"
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_a_row_scores_the_same_alone_and_in_any_batch(predictor, seed, batch_rows):
    raw = served.rows(12, seed)
    whole = predictor.score(raw)
    parts = [predictor.score(part) for part in raw.iter_slices(batch_rows)]
    alone = [predictor.score(part) for part in raw.iter_slices(1)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-6)


def test_rows_with_empty_lists_only_and_no_rows_at_all_are_scored(predictor, features, model):
    empty = pl.lit([], dtype=pl.List(pl.Int64))
    raw = served.rows(3).with_columns(seen=empty, genre_text=pl.lit(""), tags=pl.lit([]))
    raw = raw.with_columns(pl.col("tags").cast(pl.List(pl.String)))
    expected = served.trained_scores(features, model, raw)
    np.testing.assert_allclose(predictor.score(raw), expected, atol=1e-6)
    assert predictor.score(raw.clear()).shape == (0, 1)


def test_batches_longer_than_the_program_runs_at_once_keep_their_order(predictor, monkeypatch):
    raw = served.rows(50, seed=4)
    whole = predictor.score(raw)
    monkeypatch.setattr(predictors, "MAX_BATCH", 7)
    np.testing.assert_allclose(predictor.score(raw), whole, atol=1e-6)


def test_one_very_long_list_cuts_its_batch_and_changes_no_score(predictor, monkeypatch):
    raw = served.rows(20, seed=5).with_columns(
        tags=pl.when(pl.int_range(20) == 11).then(pl.lit(["drama"] * 300)).otherwise("tags")
    )
    whole = predictor.score(raw)
    monkeypatch.setattr(tensors, "MAX_PADDED_IDS", 400)
    np.testing.assert_allclose(predictor.score(raw), whole, atol=1e-6)


def test_unseen_and_missing_values_are_scored_as_the_features_say(predictor, features, model):
    raw = served.rows(4).with_columns(
        user=pl.lit(None, pl.String), item=pl.lit(10**12), price=pl.lit(float("nan"))
    )
    expected = served.trained_scores(features, model, raw)
    np.testing.assert_allclose(predictor.score(raw), expected, atol=1e-6)


def test_replay_measures_the_largest_difference_in_batches_of_any_size(predictor, monkeypatch):
    assert all(predictor.replay(size) < 1e-6 for size in (1, 64, 130))
    raw, scores = predictor.bundle.golden()
    changed = scores.copy()
    changed[17] += 0.25
    monkeypatch.setattr(type(predictor.bundle), "golden", lambda self: (raw, changed))
    assert predictor.replay(5) == pytest.approx(0.25, abs=1e-6)
    changed[3] = np.nan
    assert predictor.replay(64) == float("inf")


def test_errors_name_the_row_of_the_table(predictor):
    raw = served.rows(3).with_columns(age=pl.Series(["30", "x", "31"]))
    with pytest.raises(RowMismatch, match="row 2, column 'age': expected int, found 'x'"):
        predictor.score(raw)
    with pytest.raises(SchemaMismatch, match="'age'"):
        predictor.score(raw.drop("age"))


def test_a_program_for_another_processor_or_torch_is_refused(bundle, monkeypatch):
    def refused(**changes):
        manifest = bundle.manifest.model_copy(update={"program": "aotinductor", **changes})
        altered = type(bundle)(bundle.folder, manifest, bundle.signature)
        with pytest.raises(BundleMismatch) as caught:
            predictors.load_program(altered)
        return str(caught.value)

    arm = refused(processor=Processor(machine="mips", capability="DEFAULT"))
    assert "expected mips with DEFAULT" in arm
    newer = refused(processor=Processor(machine="x86_64", capability="AVX9000"))
    assert "AVX9000" in newer
    torch = refused(versions={"torch": "1.13.1"})
    assert "expected torch 1.13, found torch 2." in torch


def test_a_processor_with_more_instructions_than_needed_will_do(monkeypatch):
    monkeypatch.setattr(predictors.platform, "machine", lambda: "x86_64")
    capability = predictors.torch.backends.cpu
    monkeypatch.setattr(capability, "get_cpu_capability", lambda: "AVX512")
    predictors._check_processor(Processor(machine="x86_64", capability="AVX2"))
    monkeypatch.setattr(capability, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(BundleMismatch, match="x86_64 with AVX2, found x86_64 with DEFAULT"):
        predictors._check_processor(Processor(machine="x86_64", capability="AVX2"))


def test_several_tasks_give_one_column_each(tmp_path):

    features = served.fitted(("click", "buy"))
    model = served.served_ranker(features, "dnn")
    raw = served.rows(30, seed=8)
    export_bundle(model, features, raw, tmp_path / "bundle", ExportConfig(compile=False))
    scores = Predictor(tmp_path / "bundle").score(raw)
    expected = np.array(served.trained_scores(features, model, raw))
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.1


def test_scoring_threads_work_on_one_core_each_and_leave_the_callers_number_alone():
    before = predictors.torch.get_num_threads()
    pool = predictors.scoring_threads(2)
    assert set(pool.map(lambda _: predictors.torch.get_num_threads(), range(8))) == {1}
    assert predictors.torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as later:
        assert later.submit(predictors.torch.get_num_threads).result() == before


@pytest.fixture(scope="module")
def of_lists(tmp_path_factory) -> Predictor:
    """A bundle whose lists have weights and gaps."""
    features = served.fitted_lists()
    model = served.served_ranker(features)
    folder = tmp_path_factory.mktemp("lists") / "bundle"
    export_bundle(model, features, served.list_rows(20, 1), folder, ExportConfig(compile=False))
    return Predictor(folder, num_threads=1)


def as_request(raw: pl.DataFrame, names: list[str]) -> bytes:
    rows = raw.select(names).to_dicts()
    return json.dumps({"rows": rows}, default=lambda time: time.isoformat()).encode()


def test_weighted_rows_score_as_trained_in_tables_and_in_requests(of_lists):
    raw = served.list_rows(9, 2)
    features = served.fitted_lists()
    expected = served.trained_scores(features, served.served_ranker(features), raw)
    np.testing.assert_allclose(of_lists.score(raw), expected, atol=1e-6)
    status, answer = respond(of_lists, as_request(raw, of_lists.signature.names))
    assert status == 200
    np.testing.assert_allclose(json.loads(answer)["scores"], np.ravel(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("strength", [1.0], "as many as there are values in 'liked' (weights of 'likes')"),
        ("seen__weight", [-1.0, 2.0], "finite numbers that are not negative (weights of 'past')"),
        ("seen__time", [], "as many as there are values in 'seen' (times of 'past')"),
    ],
)
def test_lists_that_do_not_fit_each_other_are_refused_with_their_row(
    of_lists, column, value, expected
):
    good = served.list_rows(1, 3).with_columns(
        liked=pl.lit([1, 2]), strength=pl.lit([0.5, 0.5]), seen=pl.lit([3, 4]),
        seen__weight=pl.lit([0.5, 0.5]), seen__time=pl.concat_list("clicked", "clicked"),
    )  # fmt: skip
    bad = good.with_columns(pl.lit(value, dtype=good.schema[column]).alias(column))
    raw = pl.concat([good, bad])
    with pytest.raises(RowMismatch, match=re.escape(f"row 2, column {column!r}: expected")):
        of_lists.score(raw)
    status, answer = respond(of_lists, as_request(raw, of_lists.signature.names))
    assert status == 422
    (problem,) = json.loads(answer)["detail"]
    assert (problem["row"], problem["field"], problem["expected"]) == (1, column, expected)
