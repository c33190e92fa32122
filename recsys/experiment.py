"""The whole configuration of one experiment: a YAML file, or the same objects from Python.

Every section is a frozen value that its owner declares; this file only puts them side by side,
checks what one section says about another, and reads and writes the YAML.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from feature_store.config import Config
from feature_store.entities import EntitySide, fields_of
from feature_store.features import Categorical, FeatureSet, IdField, nearest, source_of
from feature_store.kinds import declared_fields, kind_of
from pipelines.sources import DataConfig
from recsys import yaml_source
from recsys.embeddings.config import EmbeddingsConfig
from recsys.evaluation.evaluate import EvaluationConfig
from recsys.export.bundle import ExportConfig
from recsys.models import ModelConfig
from recsys.models.correction import SamplingCorrection
from recsys.models.history import HistoryModelConfig, needs_history
from recsys.objectives import ObjectiveConfig
from recsys.objectives.click import LogLossConfig
from recsys.objectives.in_batch_softmax import chosen_item
from recsys.objectives.self_supervision import SSLConfig
from recsys.problems import validated
from recsys.training.trainer import TrainingConfig
from recsys.yaml_source import ExperimentError, KeyPath

__all__ = ["Experiment", "ExperimentError", "load", "schema"]

Complaint = tuple[KeyPath, str]


def folder_name(name: str) -> str:
    """The name, if a folder may have it; ValueError if not."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(
            "expected a name for a folder: letters, digits, '.', '_', '-', not '.' first;"
            f" found {name!r}"
        )
    return name


class Experiment(Config):
    """Everything that decides what a run computes."""

    name: Annotated[str, AfterValidator(folder_name)]
    """Names the folder of its runs and its table in the store."""
    data: DataConfig
    features: FeatureSet
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    model: ModelConfig
    objective: ObjectiveConfig = LogLossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        complaints = [
            *_missing_columns(self.data, self.features),
            *_split_without_its_column(self.data, self.features),
            *_negatives_of_no_label(self.data, self.features),
            *_tables_that_do_not_fit(self.embeddings, self.features),
            *_model_without_its_features(self.model, self.features),
            *_objective_that_does_not_fit(self.objective, self.model, self.features),
            *_self_supervision_without_its_features(self),
            *_unknown_evaluation_names(self.evaluation, self.features),
            *_stopping_by_no_label(self.training, self.features),
        ]
        if complaints:
            raise ValidationError.from_exception_data(
                "Experiment",
                [
                    InitErrorDetails(
                        type=PydanticCustomError("reference", "{text}", {"text": text}),
                        loc=path,
                        input=None,
                    )
                    for path, text in complaints
                ],
            )
        return self

    def supervised_entities(self) -> dict[EntitySide, str]:
        """By side that learns by self-supervision, the feature with the entity's id."""
        ssl = self.objective.ssl
        if ssl is None:
            return {}
        return {side: _entity(side, ssl, self.evaluation) or "" for side in ssl.sides}

    def correction(self) -> SamplingCorrection | None:
        """What makes probabilities right after negatives were left out of the training rows."""
        sampling = self.data.negative_downsampling
        if sampling is None:
            return None
        label = sampling.chosen(self.features)
        return SamplingCorrection(sampling.rate, self.features.labels.index(label))

    def hash(self) -> str:
        """SHA-256 of all that decides the result, in hexadecimal; its first 12 digits name it.

        Where the workers run does not: a run is continued on any number of them.
        """
        values = self.model_dump(mode="json", exclude={"training": {"scaling"}})
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved configuration, every default written out; `load` reads it back equal."""
        return yaml_source.dump(self.model_dump(mode="json"))


def _missing_columns(data: DataConfig, features: FeatureSet) -> Iterator[Complaint]:
    """Raw columns that a feature reads and the data do not declare."""
    known = data.all_columns
    read: list[tuple[KeyPath, str, str | None]] = []
    for index, feature in enumerate(features.inputs):
        path: KeyPath = ("features", "inputs", index)
        settings = feature.model_dump(exclude={"kind", "side"})
        for column in kind_of(feature).logged(feature, features):
            read.append(((*path, *_key_of(column, settings)), column, feature.name))
    for index, label in enumerate(features.labels):
        key = "name" if label.source is None else "source"
        read.append((("features", "labels", index, key), source_of(label), label.name))
    for key in ("weight", "group", "timestamp"):
        if (column := getattr(features, key)) is not None:
            read.append((("features", key), column, None))
    for path, column, owner in read:
        if column not in known:
            whose = f", which {owner!r} reads" if owner not in (None, column) else ""
            yield path, f"the data have no column {column!r}{whose}; {nearest(column, known)}"


def _key_of(column: str, settings: Mapping[str, object]) -> KeyPath:
    """The key of a feature's settings that names a raw column."""
    for key, value in settings.items():
        if value == column:
            return (key,)
        if isinstance(value, dict) and (inner := _key_of(column, value)):
            return (key, *inner)
    return ()


def _split_without_its_column(data: DataConfig, features: FeatureSet) -> Iterator[Complaint]:
    """Splits in time and by user need to know which columns those are."""
    split = data.split
    if split.by in ("time", "user") and features.timestamp is None:
        yield ("data", "split", "by"), f"by {split.by} needs features.timestamp"
    if split.by == "user":
        known = list(data.columns)
        if split.user is None and features.group is None:
            yield ("data", "split", "by"), "by user needs data.split.user or features.group"
        elif split.user is not None and split.user not in known:
            yield ("data", "split", "user"), f"no such column; {nearest(split.user, known)}"


def _negatives_of_no_label(data: DataConfig, features: FeatureSet) -> Iterator[Complaint]:
    """Which rows are negative must be clear."""
    if data.negative_downsampling is not None:
        try:
            data.negative_downsampling.chosen(features)
        except ValueError as error:
            yield ("data", "negative_downsampling"), str(error)


def _fields(features: FeatureSet) -> list[IdField]:
    """The id columns that the features will have."""
    return [field for feature in features.inputs for field in declared_fields(feature, features)]


def _single(features: FeatureSet) -> list[str]:
    """Names of the features with exactly one id a row."""
    return [field.name for field in _fields(features) if field.shape == "single"]


def _tables_that_do_not_fit(
    embeddings: EmbeddingsConfig, features: FeatureSet
) -> Iterator[Complaint]:
    """Settings for features without a table, and hashed features whose table has no size."""
    tables = list(dict.fromkeys(field.space for field in _fields(features)))
    shared = {f.name: f.space for f in _fields(features) if f.space != f.name}
    for name in embeddings.features:
        path: KeyPath = ("embeddings", "features", name)
        if name in shared:
            yield path, f"a sequence uses the table of its feature: set {shared[name]!r} instead"
        elif name not in tables:
            yield path, f"no feature of that name has a table; {nearest(name, tables)}"
    for index, feature in enumerate(features.inputs):
        hashed = kind_of(feature).hashed(feature)
        settings = embeddings.of(feature.name)
        if hashed and settings.num_embeddings is None and not settings.scheme.unbounded:
            yield (
                ("features", "inputs", index, "encoding"),
                "a hashed feature's table needs a size: set"
                f" embeddings.features.{feature.name}.num_embeddings",
            )


def _model_without_its_features(model: ModelConfig, features: FeatureSet) -> Iterator[Complaint]:
    """Histories to attend to, tasks to share experts among, features of both towers."""
    has_sequence = any(field.shape == "sequence" for field in _fields(features))
    if isinstance(model, HistoryModelConfig) and not has_sequence:
        yield ("model", "kind"), needs_history(model.kind)
    only = features.labels[0].name
    if model.kind in ("mmoe", "ple") and len(features.labels) < 2:
        yield (
            ("model", "kind"),
            f"{model.kind} shares experts among several tasks, but {only!r} is the only label;"
            " declare another one in features.labels, or take kind dnn",
        )
    sides = {feature.side for feature in features.inputs}
    if model.kind == "two_tower":
        for wanted in ({"user", "context"}, {"item"}):
            if not sides & wanted:
                named = " or ".join(sorted(wanted, reverse=True))
                yield (
                    ("model", "kind"),
                    f"two_tower needs features of side {named} for one of its towers; set side on"
                    " those in features.inputs",
                )


def _objective_that_does_not_fit(
    objective: ObjectiveConfig, model: ModelConfig, features: FeatureSet
) -> Iterator[Complaint]:
    """An objective names tasks by their labels, and some need groups or a model's towers."""
    try:
        objective.check([label.name for label in features.labels])
    except ValueError as error:
        yield ("objective",), str(error)
    if objective.kind in ("bpr", "rcr") and features.group is None:
        yield (
            ("objective", "kind"),
            f"{objective.kind} compares rows of one group: set features.group to the raw column of"
            " the user or the request",
        )
    if objective.kind == "in_batch_softmax" and model.kind != "two_tower":
        yield (
            ("objective", "kind"),
            "in_batch_softmax compares queries with the items of other rows, which takes"
            f" model.kind two_tower; found {model.kind}",
        )
    if objective.kind == "in_batch_softmax":
        try:
            chosen_item(objective.item, _item_ids(features))
        except ValueError as error:
            yield ("objective", "item"), str(error)


def _item_ids(features: FeatureSet) -> list[str]:
    fields = _fields(features)
    return [field.name for field in fields if field.side == "item" and field.shape == "single"]


def _entity(side: EntitySide, ssl: SSLConfig, evaluation: EvaluationConfig) -> str | None:
    if side == "item":
        return ssl.item or evaluation.item
    return ssl.user or evaluation.user


def _self_supervision_without_its_features(experiment: Experiment) -> Iterator[Complaint]:
    """Each side needs its entity, and features of which some can be hidden from a view."""
    ssl, features = experiment.objective.ssl, experiment.features
    if ssl is None:
        return
    if ssl.hidden is not None and experiment.model.kind == "two_tower" and ssl.side == "item":
        yield ("objective", "ssl", "hidden"), "two_tower encodes items by its own tower; drop this"
    for side in ssl.sides:
        of_side = fields_of(features, side)
        entity = _entity(side, ssl, experiment.evaluation)
        path: KeyPath = ("objective", "ssl", side)
        ids = [f.name for f in features.inputs if f.name in of_side and isinstance(f, Categorical)]
        if entity is None:
            yield (
                ("objective", "ssl"),
                f"self-supervision of side {side} needs the feature with the {side}'s id; set"
                f" objective.ssl.{side} or evaluation.{side}",
            )
        elif entity not in ids:
            yield (
                path,
                f"{entity!r} is no categorical feature of side {side}; {nearest(entity, ids)}",
            )
        if len(of_side) < 2:
            yield (
                ("objective", "ssl", "side"),
                f"masking needs two features or more of side {side}; found"
                f" {', '.join(of_side) or 'none'}. Set side: {side} on others (features.inputs)",
            )
        lists = [f.name for f in _fields(features) if f.shape != "single" and f.side == side]
        if ssl.masking == "none" and not lists:
            yield (
                ("objective", "ssl", "masking"),
                f"without masking only dropout tells views apart, and side {side} has no bag or"
                " sequence to drop values of; take cfm or rfm",
            )


def _unknown_evaluation_names(
    evaluation: EvaluationConfig, features: FeatureSet
) -> Iterator[Complaint]:
    """Baselines and slices read features that have exactly one id a row."""
    known = _single(features)
    named: list[tuple[KeyPath, str | None]] = [
        (("evaluation", "user"), evaluation.user),
        (("evaluation", "item"), evaluation.item),
        *((("evaluation", "slices", i), name) for i, name in enumerate(evaluation.slices)),
    ]
    for path, name in named:
        if name is not None and name not in known:
            yield path, f"{name!r} is no feature with one id a row; {nearest(name, known)}"


def _stopping_by_no_label(training: TrainingConfig, features: FeatureSet) -> Iterator[Complaint]:
    """Early stopping goes by one label."""
    stopping = training.early_stopping
    task = None if stopping is None else stopping.task
    known = [label.name for label in features.labels]
    if task is not None and task not in known:
        yield (
            ("training", "early_stopping", "task"),
            f"{task!r} is no label; {nearest(task, known)}",
        )


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment's file.

    Args:
        path: the YAML file.
        overrides: `key.path=value` assignments, as after `--set`, applied in their order.

    Raises:
        FileNotFoundError: there is no such file.
        ExperimentError: lists every problem with its line and what would be right.
    """
    document = yaml_source.read(Path(path))
    for assignment in overrides:
        yaml_source.override(document, assignment)
    return validated(document, Experiment)


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment's file, for editors that complete and check as one types."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Experiment.model_json_schema(),
        "title": "recsys experiment",
    }
