"""The anyio driver of schedule, submit and commit, and the streams its tokens leave by."""
