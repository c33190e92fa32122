"""From a trained model to a checked bundle, and from raw rows to scores."""
