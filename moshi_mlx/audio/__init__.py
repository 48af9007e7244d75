"""Sound in and out: files, devices, rings between threads, resampling, echo."""
