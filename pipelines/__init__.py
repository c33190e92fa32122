"""From raw files to a version in the feature store."""
