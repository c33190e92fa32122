"""From a version of features to a trained, evaluated, exported and served click model."""

from recsys import versions

versions.check()
