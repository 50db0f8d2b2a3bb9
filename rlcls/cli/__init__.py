"""The command line: configurations composed, checked and built."""
