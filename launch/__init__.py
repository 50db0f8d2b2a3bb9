"""Starts training on several processes or machines: `python -m rlcls.launch local --processes 2 -- game=Pong`."""
