"""Processes, files, random numbers and words: nothing here knows what is trained."""
