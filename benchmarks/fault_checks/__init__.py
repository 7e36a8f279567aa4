"""Parts of ``benchmarks/faults.py``: damaged inputs, killed runs, and folders that cannot be written.

mutations.py   one random change of bytes, trees, texts, arrays
archives.py    the same for npz, zip, pickle and safetensors files, and attacks on their readers
base.py        the small undamaged set, submissions, info files, weights that are damaged
data_kinds.py, file_kinds.py   kind -> an input: which file is damaged how, and the command that reads it
child.py       runs an input in a child process and judges how it ended
kills.py       runs that are killed at random moments and go on
folders.py     full, read-only and occupied folders
"""
