"""What touches the kernel: types from BTF, compiling and attaching (loader only), pins, rings, counters."""
