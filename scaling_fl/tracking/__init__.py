"""What is kept of a job: events are the truth, and every record is a replay of them.

events: the append-only file; record: what Sacred's viewers show, folded from events; replay: keeps a target up to
date with the file; file_record, mongo: the targets; tracker: where events come from.
"""
