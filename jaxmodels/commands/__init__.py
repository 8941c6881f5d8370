"""The commands, which combine models, runtime, data and bridge, so that these need not import each
other."""
