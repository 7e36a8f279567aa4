"""Splits that share no place: a checker of lists, and a maker of new ones, from poses."""
