"""Configs of models with several heads."""
