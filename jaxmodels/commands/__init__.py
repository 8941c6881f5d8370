"""The verbs that join the rooms (models, runtime, data, bridge); each file is one verb."""
