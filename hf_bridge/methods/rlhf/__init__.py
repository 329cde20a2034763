"""Training on preferences, on rewards, and on a teacher."""

import os

# TRL warns that what it calls experimental may change with any version of it; our tests know when it does.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
