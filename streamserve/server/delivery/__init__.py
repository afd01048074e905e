"""From a generation to the bytes of its answer: runs, scripts' protocols, writers. Knows no API."""
