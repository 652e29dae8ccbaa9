"""The command `condu-ray report`: `python jobs/report.py --help`."""

from condu_ray.commands.report import main

if __name__ == "__main__":
    main()
