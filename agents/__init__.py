"""Agents as pure functions: they touch no environment, file, clock or global."""
