"""Camera poses of other programs, one format a file; `files.py` knows which is which."""
