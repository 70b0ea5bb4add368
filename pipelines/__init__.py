"""The DAGs, and the ways to run one."""
