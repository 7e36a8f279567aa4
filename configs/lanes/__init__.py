"""Configs of lane topology models."""
