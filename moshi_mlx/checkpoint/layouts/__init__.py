"""Names and shapes of weights in every published file layout, as pure functions from names to expressions.

`expr` says how one tensor is made from stored ones; `lm` and `mimi` say it for every parameter of the two models. The
loader evaluates a plan with MLX arrays, the converter tensor by tensor: what a checkpoint means is written once.
"""
