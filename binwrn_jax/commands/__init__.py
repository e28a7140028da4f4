"""The verbs of `binwrn`: each module has `add_arguments(parser)` and `run(arguments) -> exit code`."""
