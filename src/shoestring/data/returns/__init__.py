"""What an answer came to, one file each: written before it as a command, so that it can be asked for (`data.return_commands`)."""
