"""The cross-entropy to a projected distribution (C51), without that distribution in memory."""
