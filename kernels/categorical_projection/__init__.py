"""The cross-entropy to a projected distribution (C51), which is never formed."""
