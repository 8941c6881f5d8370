"""Text and captioned images to batches: sources, tokenisers, token files, loaders.

Imports nothing from jaxmodels.
"""
