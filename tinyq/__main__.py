from tinyq.cli import app

app(prog_name="tinyq")
