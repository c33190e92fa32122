"""From the ids of a batch to vectors by feature name."""
