"""Readers of CSV, TSV, JSON lines and Parquet files, local or remote, and downloads.

Errors name file, row and column. Not here: the meaning of a row, which is left to the tasks (`data/tasks`).
"""
