"""The command `condu-ray ablate-inference`: `python jobs/ablate_inference.py --help`."""

from condu_ray.commands.ablate_inference import main

if __name__ == "__main__":
    main()
