"""What a clone's guest is told at its first boot: the seed disk that cloud-init's NoCloud data source reads."""
