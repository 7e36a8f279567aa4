"""Configs of models that learn from single images."""
