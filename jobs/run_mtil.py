"""The command `condu-ray run`: `python jobs/run_mtil.py --help`."""

from condu_ray.commands.run import main

if __name__ == "__main__":
    main()
