"""PrivateSNN: the command, its studies, and what the paper says beside what was measured."""
