"""Models that compute with integers alone between token ids and logits: weights, activations and cache in few bits.

`convert.integer_model` makes one of a trained `Transformer`; `model.IntegerOnlyTransformer` is the model; `kept.py` keeps it. One
file holds one part. Every scale is fixed beforehand, so that a token has the same integers however the text is cut into passes.
"""
