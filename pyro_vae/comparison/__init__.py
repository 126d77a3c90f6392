"""Algorithms x seeds: run, judge, write the folder, report it, use it on new data."""
