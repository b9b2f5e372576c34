"""Readers: rows of text out of CSV, TSV, JSON lines and Parquet files, local or remote, and downloads.

Errors name file, row and column. Not here: what a row means, which is the task's business (`data/tasks`).
"""
