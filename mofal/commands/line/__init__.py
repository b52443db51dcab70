"""The command line: what each command takes, and the call that it makes; nothing heavy."""
