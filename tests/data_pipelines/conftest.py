from hypothesis import settings

# The first example of a test pays for imports and caches; a busy machine is no defect.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
