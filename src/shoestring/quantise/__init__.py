"""Quantisation of trained models: transform x bits x solver x format, layer after layer.

`engine.quantise_layers` is the engine; `edits/ptq.py` is the same as an edit of any run; `folder.py` keeps the result.
"""
