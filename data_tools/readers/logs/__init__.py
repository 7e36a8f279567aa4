"""Logs of planning data sets: py123d's Arrow files, OpenScene's and NAVSIM's pickles."""
