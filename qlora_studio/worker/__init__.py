"""The child process: environment first, then imports, then the job of one folder."""
