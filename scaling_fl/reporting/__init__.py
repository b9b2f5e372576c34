"""What one looks at after a run: records of jobs as data frames, pictures and pages. Everything here only reads records.

records: finds the records of jobs, wherever they are; frames: records as tidy pandas data frames; charts: pictures of
frames, one module each; figures: charts as files; page: one or several jobs as HTML, with the facts of each.
Nothing here trains, or writes a record (`tracking` does).
"""
