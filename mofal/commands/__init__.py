"""What stands behind the commands: they say, write and draw, and have the campaign compute."""
