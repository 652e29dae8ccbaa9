"""The command `condu-ray sweep`: `python jobs/sweep_orders.py --help`."""

from condu_ray.commands.sweep import main

if __name__ == "__main__":
    main()
