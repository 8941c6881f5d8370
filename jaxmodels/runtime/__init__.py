"""What runs a model: state, sharding, optimiser, training, checkpoints, generation.

Nothing here names a model; everything works on what the model packages export.
"""
