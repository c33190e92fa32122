"""The base of every configuration value in the project."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen value that refuses unknown keys, so that a typo is an error and never a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
