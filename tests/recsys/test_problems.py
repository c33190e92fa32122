"""Validation errors in the user's words, on a configuration with every shape the real one has."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from feature_store.config import Config
from feature_store.features import FeatureSet
from recsys.problems import validated
from recsys.yaml_source import ExperimentError, parse


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float


class Square(Config):
    kind: Literal["square"] = "square"
    side_length: float = 1.0


class Column(Config):
    type: Literal["string", "int"]


class Toy(Config):
    epochs: int = 1
    rate: float = 0.1
    shuffle: bool = True
    mode: Literal["fast", "slow"] = "fast"
    sizes: tuple[int, ...] = ()
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Square()
    shapes: tuple[Annotated[Circle | Square, Field(discriminator="kind")], ...] = ()
    columns: dict[str, Column | Literal["string", "int"]] = {}
    features: FeatureSet | None = None

    @field_validator("rate")
    @classmethod
    def _positive(cls, rate: float) -> float:
        if rate <= 0:
            raise ValueError(f"rate is {rate}; it must be positive")
        return rate

    @model_validator(mode="after")
    def _agree(self) -> "Toy":
        if self.epochs == 99:
            raise ValidationError.from_exception_data(
                "Toy",
                [
                    InitErrorDetails(
                        type=PydanticCustomError("reference", "{text}", {"text": "99 {is} odd"}),
                        loc=("epochs",),
                        input=None,
                    )
                ],
            )
        return self


def complaints(text):
    with pytest.raises(ExperimentError) as caught:
        validated(parse(text, "toy.yaml"), Toy)
    return [str(problem) for problem in caught.value.problems]


def test_right_values_of_every_shape_pass():
    toy = validated(
        parse(
            "rate: 1\nsizes: [1, 2]\nshapes: [{kind: circle, radius: 2}]\ncolumns: {a: int}", "x"
        ),
        Toy,
    )
    assert toy == Toy(rate=1.0, sizes=(1, 2), shapes=(Circle(radius=2),), columns={"a": "int"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 3", "toy.yaml:1: epoch: unknown key; did you mean 'epochs'?"),
        (
            "\nepochs: three",
            "toy.yaml:2: epochs: expected a whole number, found 'three' (text)",
        ),
        ('epochs: "3"', "toy.yaml:1: epochs: expected a whole number, found '3' (text)"),
        ("epochs: 3.5", "toy.yaml:1: epochs: expected a whole number, found 3.5"),
        (
            "epochs: true",
            "toy.yaml:1: epochs: expected a whole number, found True (true or false)",
        ),
        ("epochs:", "toy.yaml:1: epochs: expected a whole number, found nothing"),
        ("shuffle: yes", "toy.yaml:1: shuffle: expected true or false, found 'yes' (text)"),
        (
            "mode: fats",
            "toy.yaml:1: mode: expected one of fast, slow (did you mean 'fast'?),"
            " found 'fats' (text)",
        ),
        ("sizes:\n- 1\n- x", "toy.yaml:3: sizes[1]: expected a whole number, found 'x' (text)"),
        ("sizes: 3", "toy.yaml:1: sizes: expected a list, found 3"),
        ("shape: {kind: circle}", "toy.yaml:1: shape.radius: is missing"),
        ("shape: {radius: 1}", "toy.yaml:1: shape.kind: is missing; one of circle, square"),
        (
            "shape:\n  kind: sqare",
            "toy.yaml:2: shape.kind: no such kind 'sqare'; did you mean 'square'?",
        ),
        (
            "shape:\n  kind: square\n  side_lenght: 2",
            "toy.yaml:3: shape.side_lenght: unknown key; did you mean 'side_length'?",
        ),
        (
            "shapes:\n- kind: square\n- kind: circle\n  radius: 1\n  side_length: 2",
            "toy.yaml:5: shapes[1].side_length: unknown key; known: kind, radius",
        ),
        ("rate: -1", "toy.yaml:1: rate: rate is -1.0; it must be positive"),
        ("mode: slow\nepochs: 99", "toy.yaml:2: epochs: 99 {is} odd"),
        (
            "features:\n  labels: [{name: y}]\n  inputs:\n  - {kind: categorical, name: item}\n"
            "  - kind: sequence\n    name: past\n    of: itme\n",
            "toy.yaml:7: features.inputs[1].of: sequence 'past' is a history of 'itme', which is"
            " not a categorical feature; did you mean 'item'?",
        ),
        (
            "features:\n  inputs:\n  - {kind: categorical, name: a}\n  - {kind: numeric, name: a}",
            "toy.yaml:4: features.inputs[1].name: two features or labels are named 'a';"
            " names must be unique",
        ),
        (
            "features:\n  inputs:\n  - {kind: categorical, name: a, mincount: 2}",
            "toy.yaml:3: features.inputs[0].mincount: unknown key; did you mean 'min_count'?",
        ),
        (
            "columns:\n  a: {typ: int}",
            "toy.yaml:2: columns.a.typ: unknown key; did you mean 'type'?",
        ),
    ],
)
def test_each_problem_names_its_line_its_key_and_what_would_be_right(text, expected):
    assert expected in complaints(text)


def test_all_problems_are_listed_at_once():
    assert complaints("epochs: x\nrate: y\nshap: 1") == [
        "toy.yaml:1: epochs: expected a whole number, found 'x' (text)",
        "toy.yaml:2: rate: expected a number, found 'y' (text)",
        "toy.yaml:3: shap: unknown key; did you mean 'shape'?",
    ]
