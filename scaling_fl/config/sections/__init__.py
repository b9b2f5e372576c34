"""The configuration keys by subject, one frozen dataclass per file; `config/schema.py` combines them into `Config`.

A new key is one declaration here: default, help, valid values, and whether a resume may change it.
"""
