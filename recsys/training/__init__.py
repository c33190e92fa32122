"""From batches to a trained model: the step, the loop, the launcher."""
