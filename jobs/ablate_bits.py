"""The command `condu-ray ablate-bits`: `python jobs/ablate_bits.py --help`."""

from condu_ray.commands.ablate_bits import main

if __name__ == "__main__":
    main()
