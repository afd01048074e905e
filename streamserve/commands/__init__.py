"""The commands of `streamserve`, one a module, imported when they are called."""
