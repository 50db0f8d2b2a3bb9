"""The cross-entropy to a projected distribution (C51), the projected distribution never in memory."""
