"""Third-party clients, unmodified, over a real socket against the demo model.

Each client is a file in `programs/` that runs in an environment of its own, with the client in the version that it names; the
program's assertions are the test. `test_*.py` say which versions.
"""
