"""The attacks of hostile.py: a module for each kind of input, and the process that they run in."""
