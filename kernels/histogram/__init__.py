"""Histograms of scalar targets: which bins a target falls on, and with what mass."""
