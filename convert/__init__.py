"""Checkpoints of every published format made into folders that run, and written back.

`place` finds the files of a source, `source` recognises what they are, `language_model` and `codec` plan them through
`moshi_mlx.checkpoint.layouts`, `outputs` says what is written, `stream` writes it tensor by tensor into a folder that `folder` makes appear at once.
"""
