"""The command `condu-ray ablate-merging`: `python jobs/ablate_merging.py --help`."""

from condu_ray.commands.ablate_merging import main

if __name__ == "__main__":
    main()
