"""The histogram cross-entropy of a linear layer, computed without all of its logits in memory."""
