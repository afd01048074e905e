"""What a chat or completion is answered with: chunks, whole answers, and their schemas."""
