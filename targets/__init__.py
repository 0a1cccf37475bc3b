"""What is put in front of a pool: the nbdkit front ends, and the words that tell a hypervisor how to attach."""
