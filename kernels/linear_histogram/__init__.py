"""The fused histogram cross-entropy from the features of the last layer on: its logits never exist as a whole."""
