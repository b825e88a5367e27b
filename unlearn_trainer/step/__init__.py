"""From a batch to the loss of a step."""
