"""What every model keeps to, over all of MODELS: a new model is tested by its line there."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.encoded import CLICK_AND_BUY, LAYOUT
from support.padding import served, some_rows
from support.training import CPU, embeddings_of

from feature_store.features import Layout
from recsys.batch import Batch
from recsys.dataset import BatchReader
from recsys.embeddings.collection import Embeddings
from recsys.embeddings.initial import initialize
from recsys.embeddings.serving import ServedBatch, serving_form
from recsys.export.program import ServedProgram, export
from recsys.models import MODELS, DINConfig, DNNConfig, ModelConfig, ranker
from recsys.models.arm_net import ARMNetConfig
from recsys.models.autoint import AutoIntConfig
from recsys.models.bst import BSTConfig
from recsys.models.dcn import DCNConfig
from recsys.models.dcn_v2 import DCNV2Config, LowRankConfig
from recsys.models.deepfm import DeepFMConfig
from recsys.models.dien import DIENConfig
from recsys.models.din import AttentionConfig
from recsys.models.dlrm import DLRMConfig
from recsys.models.final_mlp import FinalMLPConfig, GateConfig
from recsys.models.fm import FMConfig
from recsys.models.layers import MLPConfig
from recsys.models.lr import LRConfig
from recsys.models.mask_net import MaskNetConfig
from recsys.models.mmoe import MMoEConfig
from recsys.models.numeric import AutoDisConfig, ScaleConfig
from recsys.models.ple import PLEConfig
from recsys.models.ranker import AbstractRanker
from recsys.models.two_tower import TwoTowerConfig
from recsys.models.wide_deep import WideDeepConfig
from recsys.objectives.click import log_losses

TWO_TASKS = Layout(ids=LAYOUT.ids, dense=LAYOUT.dense, tasks=("label", "price"))
SMALL = MLPConfig(hidden=(16, 8))
CONFIGS: dict[str, ModelConfig] = {
    "din": DINConfig(),
    "din softmax": DINConfig(attention=AttentionConfig(softmax=True), mlp=SMALL),
    "din normed": DINConfig(
        attention=AttentionConfig(mlp=MLPConfig(hidden=(8,), batch_norm=True, dropout=0.1)),
        mlp=MLPConfig(hidden=(16,), activation="prelu", batch_norm=True),
    ),
    "din outer product": DINConfig(
        attention=AttentionConfig(
            interaction="outer_product", mlp=MLPConfig(hidden=(8,), activation="leaky_relu")
        ),
        mlp=SMALL,
    ),
    "din product": DINConfig(attention=AttentionConfig(interaction="product"), mlp=SMALL),
    "dien": DIENConfig(mlp=SMALL),
    "dien agru": DIENConfig(evolution="agru", auxiliary_mlp=SMALL, mlp=SMALL),
    "dien aigru": DIENConfig(evolution="aigru", auxiliary_weight=0.0),
    "bst": BSTConfig(num_heads=2, mlp=SMALL),
    "bst candidate": BSTConfig(num_blocks=2, num_heads=4, output="candidate", mlp=SMALL),
    "bst mean": BSTConfig(num_heads=1, output="mean", mlp=SMALL),
    "dnn": DNNConfig(),
    "dnn dropout": DNNConfig(mlp=MLPConfig(hidden=(16,), activation="dice", dropout=0.3)),
    "autoint": AutoIntConfig(attention_dim=8, numeric=AutoDisConfig(num_meta=4)),
    "autoint code": AutoIntConfig(
        num_layers=2,
        attention_dim=8,
        projection_bias=True,
        projection_activation="relu",
        scale=True,
        layer_norm="after_relu",
        attention_dropout=0.1,
        embedding_dropout=0.1,
        mlp=SMALL,
    ),
    "autoint wide": AutoIntConfig(
        num_heads=1, attention_dim=7, residual="identity", mlp=SMALL, wide=True
    ),
    "arm_net": ARMNetConfig(num_heads=2, num_neurons=6, alpha=1.7, mlp=SMALL),
    "arm_net softmax": ARMNetConfig(num_heads=1, num_neurons=4, alpha=1, mlp=SMALL),
    "arm_net deep": ARMNetConfig(
        num_heads=2,
        num_neurons=4,
        alpha=2,
        mlp=MLPConfig(hidden=(8,), batch_norm=True),
        deep=SMALL,
    ),
    "lr": LRConfig(),
    "fm": FMConfig(),
    "fm autodis": FMConfig(numeric=AutoDisConfig(num_meta=4)),
    "wide_deep": WideDeepConfig(mlp=SMALL),
    "deepfm": DeepFMConfig(mlp=SMALL),
    "dcn": DCNConfig(cross_layers=2, mlp=SMALL),
    "dcn_v2": DCNV2Config(cross_layers=2, mlp=SMALL),
    "dcn_v2 mixture": DCNV2Config(
        structure="stacked",
        cross_layers=2,
        low_rank=LowRankConfig(rank=3, num_experts=2),
        mlp=SMALL,
        numeric=ScaleConfig(),
    ),
    "dlrm": DLRMConfig(bottom_mlp=SMALL, top_mlp=SMALL),
    "final_mlp": FinalMLPConfig(
        mlp1=SMALL,
        mlp2=MLPConfig(hidden=(12, 6)),
        gate1=GateConfig(context=("user", "history"), mlp=MLPConfig(hidden=(4,))),
        gate2=GateConfig(mlp=MLPConfig(hidden=(4,))),
        num_heads=2,
    ),
    "mask_net": MaskNetConfig(blocks=(16, 12)),
    "mask_net parallel": MaskNetConfig(structure="parallel", blocks=(8, 8), mlp=SMALL),
    "mmoe": MMoEConfig(num_experts=3, expert_mlp=SMALL, tower_mlp=MLPConfig(hidden=(4,))),
    "ple": PLEConfig(expert_mlp=SMALL, tower_mlp=MLPConfig(hidden=(4,))),
    "ple one level": PLEConfig(
        num_levels=1, num_task_experts=2, expert_mlp=SMALL, tower_mlp=MLPConfig(hidden=())
    ),
    "two_tower": TwoTowerConfig(query_mlp=SMALL, item_mlp=SMALL, output_dim=8),
}
OF_SEVERAL_TASKS = ("mmoe", "ple")
every = pytest.mark.parametrize("name", list(CONFIGS))


def layout_of(name: str) -> Layout:
    return CLICK_AND_BUY if CONFIGS[name].kind in OF_SEVERAL_TASKS else LAYOUT


@pytest.fixture
def batch(name: str, files: Sequence[Path]) -> Batch:
    """The first 64 rows, with the labels of the model's tasks."""
    return next(BatchReader(files, layout_of(name), batch_size=64).epoch(0))


def made(name: str, layout: Layout | None = None, seed: int = 0) -> AbstractRanker:
    layout = layout or layout_of(name)
    torch.manual_seed(seed)
    embeddings = Embeddings(layout, embeddings_of(), CPU)
    tables = embeddings.tables
    initialize(embeddings, tables, seed)
    return ranker(CONFIGS[name], layout, embeddings)


def loss_of(model: AbstractRanker, batch: Batch) -> torch.Tensor:
    return log_losses(model(batch), batch.labels_BT, batch.weights_B, batch.weight_sum).sum()


def auxiliary_of(model: AbstractRanker) -> torch.Tensor:
    loss = model.auxiliary_loss()
    return torch.zeros(()) if loss is None else loss


def after_training(name: str, batch: Batch, steps: int = 60) -> tuple[AbstractRanker, list[float]]:
    model = made(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        (loss + auxiliary_of(model)).backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def test_every_model_is_under_contract() -> None:
    assert {config.kind for config in CONFIGS.values()} == set(MODELS)
    for kind, built in MODELS.items():
        assert isinstance(made(kind), built)


@every
def test_logits_have_a_column_for_every_task(name: str, files: Sequence[Path]) -> None:
    batch = next(BatchReader(files, TWO_TASKS, batch_size=33).epoch(0))
    logits_BT = made(name, TWO_TASKS)(batch)
    assert logits_BT.shape == (33, 2)
    assert logits_BT.dtype == torch.float32


@every
def test_every_parameter_has_a_finite_gradient(name: str, batch: Batch) -> None:
    model = made(name)
    (loss_of(model, batch) + auxiliary_of(model)).backward()
    for parameter, weight in model.named_parameters():
        assert weight.grad is not None, parameter
        assert torch.isfinite(weight.grad).all(), parameter
        # DNN reads no sequence, but their table holds the single ids too.
        assert weight.grad.abs().sum() > 0 or parameter.endswith(("score.bias", "linears.0.bias"))


@every
def test_a_seed_decides_all(name: str, batch: Batch) -> None:
    def logits(seed: int) -> torch.Tensor:
        model = made(name, seed=seed)
        torch.manual_seed(5)
        return model(batch)

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


@every
def test_the_loss_falls_on_64_rows(name: str, batch: Batch) -> None:
    _, losses = after_training(name, batch)
    assert losses[-1] < 0.4 * losses[0]


@every
def test_a_row_is_scored_the_same_alone_and_in_any_company(name: str, batch: Batch) -> None:
    model = after_training(name, batch, steps=5)[0].eval()
    inputs = served(batch)
    model.embeddings = serving_form(model.embeddings)
    together = model(inputs)
    for row in (0, 17, 63):
        alone = model(rows_of(inputs, slice(row, row + 1)))
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


def rows_of(inputs: ServedBatch, rows: slice) -> ServedBatch:
    ids = {name: some_rows(padded, rows) for name, padded in inputs.ids.items()}
    return ServedBatch(ids, inputs.dense_BN[rows])


@every
def test_saved_and_loaded_it_gives_identical_logits(
    name: str, batch: Batch, tmp_path: Path
) -> None:
    model, _ = after_training(name, batch, steps=5)
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    other = made(name, seed=99)
    tensors = {"model": other.state_dict()}
    dcp.load(tensors, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(tensors["model"])
    assert torch.equal(other.eval()(batch), model.eval()(batch))


@every
def test_the_serving_form_scores_as_the_training_form(name: str, batch: Batch) -> None:
    model = after_training(name, batch, steps=5)[0].eval()
    expected = model(batch)
    model.embeddings = serving_form(model.embeddings)
    for extra in (0, 4):
        torch.testing.assert_close(model(served(batch, extra)), expected, rtol=0, atol=1e-6)


@every
def test_the_exported_program_scores_as_the_model(
    name: str, batch: Batch, files: Sequence[Path]
) -> None:
    """At batch 1 and at sizes that were never traced."""
    model = after_training(name, batch, steps=5)[0].eval()
    training = copy.deepcopy(model)
    model.embeddings = serving_form(model.embeddings)
    layout = layout_of(name)
    program = export(ServedProgram(model, layout), layout).module()
    for num_rows in (1, 2, 37):
        rows = next(BatchReader(files, layout, batch_size=num_rows).epoch(0))
        inputs = served(rows, extra=1)
        singles = [f.name for f in LAYOUT.ids if f.shape == "single"]
        lists = [f.name for f in LAYOUT.ids if f.shape != "single"]
        found = program(
            inputs.dense_BN,
            torch.cat([inputs.ids[each].ids_BL for each in singles], dim=1),
            *(part for each in lists for part in inputs.ids[each][:2]),
        )
        torch.testing.assert_close(found, torch.sigmoid(training(rows)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["bst", "dien", "din", "dnn"])
def test_bfloat16_logits_stay_near(name: str, batch: Batch) -> None:
    model = made(name).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch)
    torch.testing.assert_close(found.float(), model(batch), rtol=0.05, atol=0.02)
