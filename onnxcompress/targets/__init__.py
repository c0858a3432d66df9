"""Facts about the processors and runtimes that models are made for, one TOML file each."""
