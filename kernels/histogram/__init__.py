"""Histograms of scalar targets, and the cross-entropy to them."""
