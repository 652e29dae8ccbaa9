"""The command `condu-ray prepare`: `python jobs/prepare_datasets.py --help`."""

from condu_ray.commands.prepare import main

if __name__ == "__main__":
    main()
