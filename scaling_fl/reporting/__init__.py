"""What one looks at after a run: records of jobs as data frames. Everything here only reads records.

records: finds the records of jobs, wherever they are; frames: records as tidy pandas data frames.
Nothing here trains, or writes a record (`tracking` does).
"""
