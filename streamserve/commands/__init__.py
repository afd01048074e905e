"""The commands of `streamserve`, one per module, imported when they are called."""
