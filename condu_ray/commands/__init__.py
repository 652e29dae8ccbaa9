"""The user's commands, a module each: `condu-ray NAME` and the files in `jobs/` call their `main`.

A command's head imports nothing heavy: help and refusals of flags come before torch and Ray are loaded. `job` and
`finished` are what the commands share.
"""
