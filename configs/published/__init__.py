"""Configs of released baselines."""
