"""The schemes, one file a method: a new one is its file and its line here."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from recsys.embeddings.compression.compositional import CompositionalConfig
from recsys.embeddings.compression.full import FullConfig
from recsys.embeddings.scheme import SchemeConfig

AnyScheme = Annotated[
    FullConfig | CompositionalConfig,
    Field(discriminator="kind"),
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]
"""A method by name, `scheme: compositional`, or with settings, `scheme: {kind: ..., ...}`."""

SCHEMES: dict[str, type[SchemeConfig]] = {
    "full": FullConfig,
    "compositional": CompositionalConfig,
}
