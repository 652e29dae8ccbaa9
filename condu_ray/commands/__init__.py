"""The user's commands, a module each: `condu-ray NAME` and the files in `jobs/` call their `main`.

A module's head imports nothing heavy: help and refusals of flags come before torch and Ray are loaded.
"""
