"""How a study is run: engines, command line, tables and plots."""
