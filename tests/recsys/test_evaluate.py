"""The evaluator: configuration, batches, workers."""

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support.ranks import on_ranks
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from feature_store.features import IdField, Layout
from recsys.batch import Batch
from recsys.evaluation.baselines import GLOBAL_RATE, USER_ITEM_RATES
from recsys.evaluation.evaluate import (
    EvaluationConfig,
    Evaluator,
    ScoredRows,
    count_rates,
    evaluate,
    scored_rows,
    shared,
)

LAYOUT = Layout(
    ids=(
        IdField(name="user", shape="single", side="user", space="user"),
        IdField(name="item", shape="single", side="item", space="item", cardinality=40),
        IdField(name="day", shape="single", side="context", space="day", cardinality=5),
        IdField(name="tags", shape="bag", side="item", space="tags"),
    ),
    dense=("price",),
    tasks=("click", "buy"),
)
CONFIG = EvaluationConfig(user="user", item="item", slices=("day", "user"), calibration_bins=5)


def batches(num_rows=300, batch_size=64, seed=0):
    """Batches of which the last is padded; padding has no ids."""
    random = np.random.default_rng(seed)
    rows = {
        "user": random.integers(-(2**62), 2**62, 20)[random.integers(0, 20, num_rows)],
        "item": random.integers(0, 40, num_rows),
        "day": random.integers(2, 5, num_rows),
    }
    dense = random.normal(size=(num_rows, 1)).astype(np.float32)
    labels = (random.random((num_rows, 2)) < [0.5, 0.2]).astype(np.float32)
    groups = rows["item"] // 4
    for start in range(0, num_rows, batch_size):
        part = slice(start, start + batch_size)
        real = len(dense[part])
        pad = batch_size - real
        lengths = np.tile(np.r_[np.ones(real), np.zeros(pad)], (3, 1))
        tags = np.r_[np.full(real, 2), np.zeros(pad)]
        values = [*(rows[name][part] for name in rows), np.full(2 * real, 7)]
        ids = KeyedJaggedTensor(
            keys=["user", "item", "day", "tags"],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate([lengths.ravel(), tags])).long(),
        )
        yield Batch(
            ids=ids,
            dense_BN=torch.from_numpy(np.pad(dense[part], ((0, pad), (0, 0)))),
            labels_BT=torch.from_numpy(np.pad(labels[part], ((0, pad), (0, 0)))),
            weights_B=torch.from_numpy(np.pad(np.ones(real, np.float32), (0, pad))),
            groups_B=torch.from_numpy(np.pad(groups[part], (0, pad))),
            weight_sum=torch.tensor(float(real)),
        )


def predict(batch):
    return torch.cat([batch.dense_BN, -batch.dense_BN], dim=1)


def evaluated(config=CONFIG):
    evaluator = Evaluator(config, LAYOUT, count_rates(batches(seed=1), config, LAYOUT))
    rows = scored_rows(predict, batches(), config.fields, torch.device("cpu"))
    return evaluator, evaluate(evaluator, rows)


def test_every_row_counts_once_for_model_and_baselines():
    _, result = evaluated()
    dense = torch.cat([b.dense_BN for b in batches()]).numpy()[:300, 0]
    labels = torch.cat([b.labels_BT for b in batches()]).numpy()[:300]
    assert result.rows == 300
    assert result.headline.metrics["auc"] == pytest.approx(roc_auc_score(labels[:, 0], dense))
    assert result.tasks["buy"].metrics["auc"] == pytest.approx(roc_auc_score(labels[:, 1], -dense))
    assert set(result.baselines) == {GLOBAL_RATE, USER_ITEM_RATES}
    assert result.baselines[GLOBAL_RATE]["click"].metrics["auc"] == 0.5
    training = torch.cat([b.labels_BT for b in batches(seed=1)]).numpy()[:300].mean(0)
    found = result.baselines[GLOBAL_RATE]["buy"].metrics["mean_prediction"]
    assert found == pytest.approx(training[1])


def test_few_values_are_sliced_by_value_and_many_by_frequency():
    evaluator, result = evaluated()
    assert {s["value"] for s in result.headline.slices["day"]} == {"2", "3", "4"}
    assert evaluator.slicings["user"].tiers is not None
    assert sum(s["rows"] for s in result.headline.slices["user"]) == 300
    assert [s["value"] for s in result.headline.slices["user"]] == ["unseen in training"]


def test_states_of_workers_merge_to_the_whole():
    evaluator, expected = evaluated()
    whole = evaluator.new_state()
    rows = list(scored_rows(predict, batches(), CONFIG.fields, torch.device("cpu")))
    for worker in range(3):
        state = evaluator.new_state()
        for batch in rows[worker::3]:
            evaluator.update(state, batch)
        whole.merge(pickle.loads(pickle.dumps(state)))
    assert evaluator.result(whole) == expected


@pytest.mark.distributed
def test_two_workers_hold_the_rows_of_both():
    config = EvaluationConfig(user="user", item="item", slices=("user",))
    rates = count_rates(batches(), config, LAYOUT)
    for merged in on_ranks(2, shared, rates):
        totals = merged.by_field["user"]
        np.testing.assert_array_equal(totals.ids_V, rates.by_field["user"].ids_V)
        np.testing.assert_array_equal(totals.counts_V, 2 * rates.by_field["user"].counts_V)


def test_one_class_is_named_not_hidden():
    config = EvaluationConfig()
    evaluator = Evaluator(config, LAYOUT, count_rates(batches(), config, LAYOUT))
    rows = ScoredRows(
        np.zeros((4, 2), np.float32), np.zeros((4, 2)), np.ones(4, np.float32), np.ones(4), {}
    )
    result = evaluate(evaluator, [rows])
    assert math.isnan(result.headline.metrics["auc"])
    assert result.headline.undefined["auc"] == "every row has label 0"
    assert set(result.baselines) == {GLOBAL_RATE}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"slices": ("dya",)}, "did you mean 'day'"),
        ({"slices": ("tags",)}, "no feature with one id a row"),
        ({"user": "usr", "item": "item"}, "did you mean 'user'"),
    ],
)
def test_names_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**config).check(LAYOUT)


def test_the_user_item_baseline_needs_both_names():
    with pytest.raises(ValueError, match="both"):
        EvaluationConfig(user="user")
