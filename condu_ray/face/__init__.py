"""What a notebook takes from `condu_ray`: learning, merging and measuring in this process, runs, what storage holds."""
